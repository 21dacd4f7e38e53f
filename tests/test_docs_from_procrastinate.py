"""The SQL of docs/from/procrastinate.md, beside a table as procrastinate 3.10.0 makes it."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.pages import ROOT, blocks

_TABLE = """
create type procrastinate_job_status as enum
    ('todo', 'doing', 'succeeded', 'failed', 'cancelled', 'aborting', 'aborted');
create table procrastinate_jobs (
    id bigserial primary key,
    queue_name varchar(128) not null default 'reminders',
    task_name varchar(128) not null default 'jobs.remind',
    priority int not null default 0,
    lock text,
    queueing_lock text,
    args jsonb not null default '{}',
    status procrastinate_job_status not null default 'todo',
    scheduled_at timestamptz,
    attempts int not null default 0,
    abort_requested boolean not null default false,
    worker_id bigint);
create unique index on procrastinate_jobs (queueing_lock) where status = 'todo';
insert into procrastinate_jobs (args, priority, queueing_lock, status, task_name, scheduled_at) values
    ('{"user_id": 1}', 0, null, 'todo', 'jobs.remind', '2130-01-01 09:00 UTC'),
    ('{"user_id": 2}', 7, 'user-2', 'todo', 'jobs.remind', '2130-01-02 09:00 UTC'),
    ('{"user_id": 3}', -5, null, 'todo', 'jobs.remind', '2130-01-03 09:00 UTC'),
    ('{"user_id": 4}', 0, null, 'todo', 'jobs.remind', null),
    ('{"user_id": 5}', 0, null, 'todo', 'jobs.other', '2130-01-01 09:00 UTC'),
    ('{"user_id": 6}', 0, null, 'doing', 'jobs.remind', '2130-01-01 09:00 UTC');
"""


@pytest.fixture
def statements(db: psycopg.Connection[Any]) -> tuple[bytes, bytes]:
    """The page's two statements, there and back, and a table with six jobs: the first three are to be copied."""
    db.execute(_TABLE)
    db.execute("select queue_worker.create_queue('reminders')")
    page = ROOT / "docs" / "from" / "procrastinate.md"
    there, back = (block.text.encode() for block in blocks(page) if block.kind == "sql")
    return there, back


def _statuses(db: psycopg.Connection[Any]) -> list[str]:
    return [status for (status,) in db.execute("select status::text from procrastinate_jobs order by id")]


def _queued(db: psycopg.Connection[Any]) -> list[tuple[int, str, dict[str, Any]]]:
    return db.execute(
        "select (message ->> 'user_id')::int, to_char(vt at time zone 'UTC', 'YYYY-MM-DD HH24:MI'), headers"
        " from pgmq.q_reminders order by msg_id"
    ).fetchall()


def test_what_waits_for_later_is_copied_once_with_its_time_priority_and_key(
    db: psycopg.Connection[Any], statements: tuple[bytes, bytes]
) -> None:
    there, _ = statements
    assert [job for job, _ in db.execute(there)] == [1, 2, 3]
    expected = [
        (1, "2130-01-01 09:00", {"procrastinate_id": 1}),
        (2, "2130-01-02 09:00", {"procrastinate_id": 2, "priority": 7, "unique_key": "user-2"}),
        (3, "2130-01-03 09:00", {"procrastinate_id": 3}),
    ]
    assert _queued(db) == expected
    assert _statuses(db) == ["cancelled"] * 3 + ["todo", "todo", "doing"]
    assert db.execute(there).fetchall() == []
    assert _queued(db) == expected


def test_a_job_that_procrastinate_takes_meanwhile_is_not_copied(
    db: psycopg.Connection[Any], dsn: str, statements: tuple[bytes, bytes]
) -> None:
    with psycopg.connect(dsn) as other:
        other.execute("select from procrastinate_jobs where id = 2 for update")
        db.execute("set lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            db.execute(statements[0])
        assert _queued(db) == []
        other.execute("update procrastinate_jobs set status = 'doing' where id = 2")
    assert [job for job, _ in db.execute(statements[0])] == [1, 3]


def test_what_was_copied_and_has_not_run_goes_back(
    db: psycopg.Connection[Any], statements: tuple[bytes, bytes]
) -> None:
    there, back = statements
    db.execute(there)
    db.execute("select queue_worker.send('reminders', '{\"user_id\": 9}')")
    db.execute("select queue_worker.complete('reminders', 1)")
    db.execute(back)
    assert _statuses(db) == ["cancelled"] + ["todo"] * 4 + ["doing"]
    assert [user for user, _, _ in _queued(db)] == [9]
