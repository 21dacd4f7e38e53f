"""The statements of docs/from/*.md that move jobs out of another system run beside tables of that system's shape."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker import App, Job
from queue_worker.config import load_settings
from queue_worker.service import Service
from tests.pages import blocks
from tests.stages import settings_of

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "from"
OTHERS = "not-run: tests/test_docs_from.py runs it"

Connection = psycopg.Connection[Any]


def statement(page: str, words: str) -> str:
    """The one block of a page that this file has to run and that holds `words`."""
    (found,) = [one.text for one in blocks(FOLDER / page) if one.note.startswith(OTHERS) and words in one.text]
    return found


def waiting(db: Connection, queue: str) -> list[tuple[Any, ...]]:
    """The messages of a queue: payload, seconds until they are due (rounded to minutes), headers."""
    return db.execute(
        f"select message, round(extract(epoch from vt - now()) / 60)::int, headers from pgmq.q_{queue} order by vt, msg_id"
    ).fetchall()


PGBOSS = """
create schema pgboss;
create type pgboss.job_state as enum ('created', 'retry', 'active', 'completed', 'cancelled', 'failed');
create table pgboss.schedule (
    name text, key text not null default '', cron text not null, timezone text, data jsonb, options jsonb,
    primary key (name, key));
create table pgboss.job (
    id uuid not null default gen_random_uuid(), name text not null, priority int not null default 0, data jsonb,
    state pgboss.job_state not null default 'created', retry_limit int not null default 2,
    retry_count int not null default 0, expire_seconds int not null default 900, singleton_key text, policy text,
    start_after timestamptz not null default now(), started_on timestamptz, completed_on timestamptz, blocked boolean not null default false,
    primary key (name, id)) partition by list (name);
create table pgboss.job_common partition of pgboss.job default;
insert into pgboss.job (name, data, state, start_after, priority, retry_count, blocked) values
    ('email-welcome', '{"user_id": 1}', 'created', now() + interval '5 minutes', 500, 0, false),
    ('email-welcome', '{"user_id": 2}', 'retry', now() + interval '10 minutes', -3, 1, false),
    ('email-welcome', null, 'created', now() + interval '1 day', 0, 0, false),
    ('email-welcome', '{"user_id": 4}', 'created', now() - interval '1 second', 0, 0, false),
    ('email-welcome', '{"user_id": 5}', 'active', now() + interval '1 hour', 0, 0, false),
    ('email-welcome', '{"user_id": 6}', 'created', now() + interval '1 hour', 0, 0, true),
    ('email-welcome', '{"user_id": 7}', 'completed', now() + interval '1 hour', 0, 0, false),
    ('another', '{"user_id": 8}', 'created', now() + interval '1 hour', 0, 0, false);
update pgboss.job set started_on = now() where state in ('retry', 'active');
insert into pgboss.schedule (name, key, cron, timezone, data) values
    ('email-welcome', '', '0 3 * * *', null, null), ('email-welcome', 'eu', '*/5 * * * *', 'Europe/Berlin', '{"a": 1}'),
    ('another', '', '* * * * *', null, null);
"""


@pytest.fixture
def pgboss(db: Connection) -> Connection:
    """A database with the tables of pg-boss, as its schema 37 has them, and our queue."""
    db.execute(PGBOSS)
    db.execute("select queue_worker.create_queue('welcome')")
    return db


def states(db: Connection, table: str, order: str) -> list[Any]:
    return [row[0] for row in db.execute(f"select state::text from {table} order by {order}").fetchall()]


def test_delayed_jobs_of_pgboss_move_with_time_priority_and_the_attempts_that_are_left(pgboss: Connection) -> None:
    assert len(pgboss.execute(statement("pg-boss.md", "with waiting")).fetchall()) == 3
    moved = waiting(pgboss, "welcome")
    assert [(payload, minutes) for payload, minutes, _ in moved] == [
        ({"user_id": 1}, 5),
        ({"user_id": 2}, 10),
        ({}, 1440),
    ]
    assert [(head.get("priority"), head["max_attempts"], head["timeout_seconds"]) for *_, head in moved] == [
        (100, 3, 900),
        (None, 1, 900),
        (None, 3, 900),
    ]
    left = states(pgboss, "pgboss.job where name = 'email-welcome'", "(data ->> 'user_id')::int nulls first")
    assert left == ["cancelled", "cancelled", "cancelled", "created", "active", "created", "completed"]
    assert len(pgboss.execute(statement("pg-boss.md", "with waiting")).fetchall()) == 0
    assert {row[0] for row in pgboss.execute(statement("pg-boss.md", "count(*)")).fetchall()} == {"created", "active"}


def test_jobs_moved_from_pgboss_go_back(pgboss: Connection) -> None:
    before = states(pgboss, "pgboss.job", "id")
    pgboss.execute(statement("pg-boss.md", "with waiting"))
    pgboss.execute("update pgmq.q_welcome set vt = now() where message @> '{\"user_id\": 1}'")
    pgboss.execute("select queue_worker.send('welcome', '{\"user_id\": 9}')")
    assert pgboss.execute(statement("pg-boss.md", "with back")).rowcount == 3
    assert waiting(pgboss, "welcome") == [({"user_id": 9}, 0, None)]
    assert [now.replace("retry", "created") for now in before] == states(pgboss, "pgboss.job", "id")


def test_a_payload_that_is_refused_moves_nothing(pgboss: Connection) -> None:
    pgboss.execute("update pgboss.job set data = '[1]' where data @> '{\"user_id\": 2}'")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="payload must be a JSON object"):
        pgboss.execute(statement("pg-boss.md", "with waiting"))
    assert waiting(pgboss, "welcome") == []
    assert "cancelled" not in states(pgboss, "pgboss.job", "id")


def test_schedules_of_pgboss_are_copied_paused(pgboss: Connection) -> None:
    pgboss.execute(statement("pg-boss.md", "queue_worker.schedule"))
    copied = pgboss.execute(
        "select name, queue, cron, timezone, payload, enabled from queue_worker.schedules order by name"
    ).fetchall()
    assert copied == [
        ("email-welcome", "welcome", "0 3 * * *", "UTC", {}, False),
        ("email-welcome.eu", "welcome", "*/5 * * * *", "Europe/Berlin", {"a": 1}, False),
    ]


@pytest.mark.parametrize("page", sorted(path.name for path in FOLDER.glob("*.md")))
def test_links_lead_to_files_and_headings(page: str) -> None:
    text = (FOLDER / page).read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    for link in links:
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        target = (FOLDER / (name or page)).resolve()
        assert target.exists(), link
        if heading:
            found = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
            assert heading in [re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in found], link
