"""The example of a mail queue: its page and its command, and the retries of a mail by a clock of the test."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from examples.mail_queue import jobs
from examples.mail_queue.servers import MailServer
from examples.stage import advance
from tests.examples.shown import all_checks_hold, read
from tests.helpers import running, wait_until

DELAYS = [60, 120, 240, 480, 960]


@pytest.mark.timeout(180)
def test_the_page_runs_and_leaves_what_it_says(db: psycopg.Connection[Any], dsn: str, tmp_path: Path) -> None:
    shown = read("mail_queue", dsn, tmp_path)
    assert all_checks_hold(shown.printed[0])
    _mails_arrived_once(shown.mails())
    assert db.execute(
        """select round(extract(epoch from f.retry_at - f.failed_at))::int from queue_worker.failures f
           join pgmq.a_email a on a.message ->> 'key' = 'order:1002:confirmed'
               and (a.headers ->> 'redriven_from')::bigint = 1
           where f.error like 's**@example.com: 452 %' order by f.attempt""",
    ).fetchall() == [(delay,) for delay in DELAYS] + [(None,)]
    assert db.execute("select dead from queue_worker.queues where queue = 'email'").fetchone() == (0,)
    assert db.execute(
        "select name, bool_and(cleared_at is not null) from queue_worker.alerts group by name order by name"
    ).fetchall() == [("backlog", True), ("dead", True)]
    acts = {action for (action,) in db.execute("select action from queue_worker.audit where queue = 'email'")}
    assert acts >= {"pause", "resume", "redrive", "discard"}


def _mails_arrived_once(mails: list[Any]) -> None:
    counted = Counter((str(mail["To"]), str(mail["Subject"])) for mail in mails)
    single = {
        ("ann@example.com", "Your order 1001"),
        ("ann@example.com", "Reset your password"),
        ("Boris <boris@example.com>", "Welcome to Lavka, Boris"),
        ("carl@example.com", "Test mail from queue-worker"),
        ("slow@example.com", "Your order 1002"),
        ("picky@example.com", "Your order 1003"),
    }
    readers = {(f"reader{number}@example.com", "Lavka news: May") for number in range(1, 31)}
    assert counted == Counter(single | readers)


def test_five_retries_at_doubling_delays_and_then_a_dead_letter(
    db: psycopg.Connection[Any], dsn: str, tmp_path: Path
) -> None:
    db.execute("select queue_worker.create_queue('email')")
    with MailServer(tmp_path / "mails") as server:
        server.answers["ann@example.com"] = "452 4.3.1 the disk is full"
        mail = {"smtp_host": "127.0.0.1", "smtp_port": server.port, "smtp_from_email": "shop@example.com"}
        with running(dsn, jobs.app, only=("email",), cycle_seconds=0.05, **mail):
            db.execute(
                """select queue_worker.send('email', '{"to": "ann@example.com", "subject": "s", "text": "t"}')"""
            )
            assert [_next_delay(db, attempt) for attempt in range(1, 6)] == DELAYS
            wait_until(lambda: db.execute("select 1 from queue_worker.dead_letters").fetchone())
        assert server.asked["ann@example.com"] == 6
        assert server.received == ()
    assert db.execute("select attempts, reason from queue_worker.dead_letters").fetchone() == (6, "attempts")
    assert db.execute("select count(*) from pgmq.q_email").fetchone() == (0,)


def _next_delay(db: psycopg.Connection[Any], attempt: int) -> int:
    """How long after this failed attempt the row is due; the queue's clock is then put forward to that moment."""
    query = """select round(extract(epoch from m.vt - f.failed_at))::int,
                      round(extract(epoch from f.retry_at - f.failed_at))::int
               from pgmq.q_email m join queue_worker.failures f on f.msg_id = m.msg_id and f.attempt = %s
               where m.vt > clock_timestamp()"""
    by_row, by_history = wait_until(lambda: db.execute(query, [attempt]).fetchone())
    assert by_row == by_history
    # Half a minute before its time it waits on.
    assert advance(db, "email", by_row - 30) == 1
    assert db.execute("select count(*) from queue_worker.failures").fetchone() == (attempt,)
    advance(db, "email", 30)
    return int(by_row)
