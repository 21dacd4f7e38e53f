"""The example of a clinic: its page and its command, and what they leave in the database, the mail server and files."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.examples.shown import Shown, all_checks_hold, read
from tests.pages import ROOT

PEOPLE = ["anna@example.com", *(f"user{number}@example.com" for number in range(1, 26))]
SCHEMA = ROOT / "examples" / "check_up" / "schema.sql"


@pytest.mark.timeout(180)
def test_the_page_runs_and_leaves_mails_reports_and_payments(
    db: psycopg.Connection[Any], dsn: str, tmp_path: Path
) -> None:
    shown = read("check_up", dsn, tmp_path)
    assert all_checks_hold(shown.printed[0])
    _each_person_got_one_mail(shown)
    _each_check_up_has_its_report(shown.folder / "reports" / "check_ups")
    assert db.execute(
        """select count(*), min(c.price_minor), bool_and(l.status = 'succeeded' and l.id = c.payment_id and l.calls = 1
                  and l.amount_minor = c.price_minor and c.payment_status = 'succeeded')
           from public.check_ups c
           join queue_worker_data.sandbox_charges l on l.key = 'check_up:' || c.id || ':charge'"""
    ).fetchone() == (26, 4990, True)
    for queue in ("email", "reports", "payments"):
        sizes = (
            "select max(n), sum(n) from (select sum(messages)::int n from clinic.claims where queue = %s group by tx) t"
        )
        assert db.execute(sizes, [queue]).fetchone() == (10, 25)
    assert db.execute("select count(*), sum(dead) from queue_worker.queues").fetchone() == (3, 0)


def _each_person_got_one_mail(shown: Shown) -> None:
    mails = shown.mails()
    assert Counter(str(mail["To"]) for mail in mails) == Counter(PEOPLE)
    assert {str(mail["Subject"]) for mail in mails} == {"Ваш чекап завершен"}
    assert {str(mail["From"]) for mail in mails} == {"Клиника <clinic@example.com>"}
    bodies = [mail.get_body() for mail in mails]
    assert all(body is not None and "Ваш чекап «Базовый» завершен." in body.get_content() for body in bodies)


def _each_check_up_has_its_report(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} == {f"{n}.{kind}" for n in range(1, 27) for kind in ("csv", "html")}
    with (folder / "26.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["Показатель"], row["Значение"]) for row in rows] == [
        ("Гемоглобин", "141"),
        ("Глюкоза", "5.1"),
        ("Холестерин", "6.2"),
    ]


def test_a_role_that_may_finish_a_check_up_needs_no_right_on_the_queues(db: psycopg.Connection[Any]) -> None:
    db.execute(SCHEMA.read_bytes())
    db.execute("grant select, update on public.check_ups to authenticated")
    db.execute("create policy all_of_it on public.check_ups to authenticated using (true)")
    db.execute(
        """with p as (insert into public.profiles (full_name, email) values ('Ann', 'ann@example.com') returning id)
           insert into public.check_ups (user_id, email, title, status, price_minor, account)
           select id, 'ann@example.com', 'Базовый', 'running', 100, 'ann' from p"""
    )
    with db.transaction():
        db.execute("set local role authenticated")
        db.execute("update public.check_ups set status = 'finished'")
        with pytest.raises(psycopg.errors.InsufficientPrivilege), db.transaction():
            db.execute("select queue_worker.send('payments', '{\"id\": 1}')")
    assert db.execute("select queue, waiting from queue_worker.queues order by queue").fetchall() == [
        ("email", 1),
        ("payments", 1),
        ("reports", 1),
    ]


def test_the_schema_may_run_twice(db: psycopg.Connection[Any]) -> None:
    db.execute(SCHEMA.read_bytes())
    db.execute(SCHEMA.read_bytes())
    assert db.execute(
        "select count(*) from pg_trigger where tgrelid = 'public.check_ups'::regclass and not tgisinternal"
    ).fetchone() == (1,)
