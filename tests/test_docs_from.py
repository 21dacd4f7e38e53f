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


GRAPHILE = """
create schema graphile_worker;
create table graphile_worker._private_tasks (id int primary key, identifier text not null unique);
create table graphile_worker._private_jobs (
    id bigint primary key generated always as identity, job_queue_id int, task_id int not null,
    payload json not null default '{}', priority smallint not null default 0, run_at timestamptz not null default now(),
    attempts smallint not null default 0, max_attempts smallint not null default 25, last_error text, key text unique,
    locked_at timestamptz, locked_by text);
create view graphile_worker.jobs as
    select j.id, null::text as queue_name, t.identifier as task_identifier, j.priority, j.run_at, j.attempts,
           j.max_attempts, j.last_error, j.key, j.locked_at, j.locked_by
    from graphile_worker._private_jobs j join graphile_worker._private_tasks t on t.id = j.task_id;
create function graphile_worker.permanently_fail_jobs(job_ids bigint[], error_message text default null)
returns setof graphile_worker._private_jobs language sql as $$
    update graphile_worker._private_jobs set attempts = max_attempts, last_error = error_message
    where id = any (job_ids) and locked_at is null returning *; $$;
create function graphile_worker.reschedule_jobs(
    job_ids bigint[], run_at timestamptz default null, priority int default null, attempts int default null,
    max_attempts int default null)
returns setof graphile_worker._private_jobs language sql as $$
    update graphile_worker._private_jobs j
    set run_at = coalesce(reschedule_jobs.run_at, j.run_at), attempts = coalesce(reschedule_jobs.attempts, j.attempts)
    where id = any (job_ids) and locked_at is null returning *; $$;
insert into graphile_worker._private_tasks values (1, 'send_email'), (2, 'another');
insert into graphile_worker._private_jobs (task_id, payload, run_at, priority, attempts, key, locked_at) values
    (1, '{"to": "a"}', now() + interval '5 minutes', -10, 0, 'a', null),
    (1, '[{"to": "b"}, {"to": "c"}]', now() + interval '10 minutes', 0, 3, null, null),
    (1, '{"to": "d"}', now() - interval '1 second', 0, 0, 'd', null),
    (1, '{"to": "e"}', now() + interval '1 hour', 0, 1, null, now()),
    (1, '{"to": "f"}', now() + interval '1 hour', 0, 25, null, null),
    (2, '{"to": "g"}', now() + interval '1 hour', 0, 0, null, null);
"""


@pytest.fixture
def graphile(db: Connection) -> Connection:
    """A database with the tables and two of the functions of Graphile Worker 0.17, and our queue."""
    db.execute(GRAPHILE)
    db.execute("select queue_worker.create_queue('send_email')")
    return db


def attempts(db: Connection) -> list[int]:
    return [row[0] for row in db.execute("select attempts from graphile_worker.jobs order by id").fetchall()]


def test_delayed_jobs_of_graphile_move_with_time_key_and_priority_turned(graphile: Connection) -> None:
    assert len(graphile.execute(statement("graphile-worker.md", "with waiting")).fetchall()) == 2
    assert waiting(graphile, "send_email") == [
        (
            {"to": "a"},
            5,
            {"priority": 60, "unique_key": "a", "max_attempts": 25, "graphile_id": 1, "graphile_attempts": 0},
        ),
        (
            {"items": [{"to": "b"}, {"to": "c"}]},
            10,
            {"priority": 50, "max_attempts": 22, "graphile_id": 2, "graphile_attempts": 3},
        ),
    ]
    assert attempts(graphile) == [25, 25, 0, 1, 25, 0]
    assert len(graphile.execute(statement("graphile-worker.md", "with waiting")).fetchall()) == 0
    left = graphile.execute(statement("graphile-worker.md", "as running")).fetchall()
    assert {(task, count, running) for task, count, running, _ in left} == {("send_email", 2, 1), ("another", 1, 0)}


def test_jobs_moved_from_graphile_go_back_with_their_attempts(graphile: Connection) -> None:
    before = graphile.execute("select id, attempts, run_at from graphile_worker.jobs order by id").fetchall()
    graphile.execute(statement("graphile-worker.md", "with waiting"))
    graphile.execute("select queue_worker.send('send_email', '{\"to\": \"h\"}')")
    assert len(graphile.execute(statement("graphile-worker.md", "with back")).fetchall()) == 2
    assert [payload for payload, *_ in waiting(graphile, "send_email")] == [{"to": "h"}]
    assert graphile.execute("select id, attempts, run_at from graphile_worker.jobs order by id").fetchall() == before


RIVER = """
create type river_job_state as enum
    ('available', 'cancelled', 'completed', 'discarded', 'pending', 'retryable', 'running', 'scheduled');
create table river_job (
    id bigserial primary key, state river_job_state not null default 'available', attempt smallint not null default 0,
    max_attempts smallint not null default 25, finalized_at timestamptz, scheduled_at timestamptz not null default now(),
    priority smallint not null default 1 check (priority between 1 and 4), args jsonb not null, kind text not null,
    metadata jsonb not null default '{}', queue text not null default 'default',
    check ((finalized_at is not null) = (state in ('cancelled', 'completed', 'discarded'))));
insert into river_job (kind, args, state, scheduled_at, priority, attempt, finalized_at) values
    ('welcome', '{"user_id": 1}', 'scheduled', now() + interval '5 minutes', 1, 0, null),
    ('welcome', '{"user_id": 2}', 'retryable', now() + interval '10 minutes', 4, 3, null),
    ('welcome', '{"user_id": 3}', 'available', now(), 1, 0, null),
    ('welcome', '{"user_id": 4}', 'running', now(), 1, 1, null),
    ('welcome', '{"user_id": 5}', 'discarded', now() + interval '1 hour', 1, 25, now()),
    ('another', '{"user_id": 6}', 'scheduled', now() + interval '1 hour', 1, 0, null);
"""


@pytest.fixture
def river(db: Connection) -> Connection:
    """A database with the table of River, as its migration 7 has it, and our queue."""
    db.execute(RIVER)
    db.execute("select queue_worker.create_queue('welcome')")
    return db


def test_delayed_jobs_of_river_move_with_time_priority_and_the_attempts_that_are_left(river: Connection) -> None:
    assert len(river.execute(statement("river.md", "with moved")).fetchall()) == 2
    assert waiting(river, "welcome") == [
        ({"user_id": 1}, 5, {"priority": 75, "max_attempts": 25, "river_id": 1}),
        ({"user_id": 2}, 10, {"max_attempts": 22, "river_id": 2}),
    ]
    assert states(river, "river_job", "id") == [
        "pending", "pending", "available", "running", "discarded", "scheduled",
    ]  # fmt: skip
    assert len(river.execute(statement("river.md", "with moved")).fetchall()) == 0
    left = river.execute(statement("river.md", "min(scheduled_at)")).fetchall()
    assert {(state, count) for state, count, _ in left} == {("available", 1), ("running", 1)}


def test_jobs_moved_from_river_go_back(river: Connection) -> None:
    kept = "select id, attempt, scheduled_at, priority, args, metadata from river_job order by id"
    before = river.execute(kept).fetchall()
    river.execute(statement("river.md", "with moved"))
    river.execute("select queue_worker.send('welcome', '{\"user_id\": 9}')")
    assert river.execute(statement("river.md", "with back")).rowcount == 2
    assert [payload for payload, *_ in waiting(river, "welcome")] == [{"user_id": 9}]
    assert river.execute(kept).fetchall() == before
    assert states(river, "river_job", "id")[:2] == ["scheduled", "scheduled"]


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
