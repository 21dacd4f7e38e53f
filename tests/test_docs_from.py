"""The statements of docs/from/*.md that move jobs out of another system run beside tables of that system's shape."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest

from tests.other_systems import GRAPHILE, PGBOSS, RIVER
from tests.pages import ROOT, blocks

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
        f"select message, round(extract(epoch from vt - now()) / 60)::int, headers from pgmq.q_{queue}"
        " order by vt, msg_id"
    ).fetchall()


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
    assert left == ["cancelled", "cancelled", "cancelled", "created", "active", "created", "completed", "created"]
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


def claim(db: Connection) -> list[tuple[Any, ...]]:
    """What a claim of up to ten orders answers: kind and id of each."""
    return db.execute(
        "select kind, msg_id from queue_worker.claim('orders', 10, 60, suspects => 1) order by msg_id"
    ).fetchall()


@pytest.fixture
def looped(db: Connection) -> Connection:
    """A queue of pgmq whose three messages a loop has read and not deleted, taken over."""
    db.execute("select pgmq.create('orders')")
    db.execute("select pgmq.send('orders', '{}') from generate_series(1, 3)")
    db.execute("select pgmq.read('orders', 0, 3)")
    db.execute("select queue_worker.create_queue('orders')")
    return db


def test_what_a_loop_has_read_is_claimed_one_at_a_time_until_it_is_set_back(looped: Connection) -> None:
    with looped.transaction(force_rollback=True):
        assert [kind for kind, _ in claim(looped)].count("job") == 1
    (reset,) = [
        one.text
        for one in blocks(FOLDER / "pgmq-loop.md")
        if one.text.strip().endswith("read_ct = 0 where read_ct > 0;")
    ]
    looped.execute(reset)
    assert claim(looped) == [("job", 1), ("job", 2), ("job", 3)]


def test_a_loop_of_another_role_sees_nothing_after_the_take_over_until_it_is_a_member(looped: Connection) -> None:
    shop, old = f"shop_{uuid.uuid4().hex}", f"loop_{uuid.uuid4().hex}"
    read = "select msg_id from pgmq.read('orders', 0, 10) order by msg_id"
    for role in (shop, old):
        looped.execute(f"create role {role}; grant usage on schema pgmq to {role}")
        looped.execute(f"grant select, insert, update, delete on pgmq.q_orders to {role}")
    try:
        looped.execute(f"set role {old}")
        assert looped.execute(read).fetchall() == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            looped.execute("select pgmq.send('orders', '{}'::jsonb)")
        looped.execute("reset role")
        grants = statement("pgmq-loop.md", "grant queue_producer")
        looped.execute(grants.replace("old_loop", old).replace("shop", shop))
        looped.execute(f"set role {shop}")
        (sent_id,) = looped.execute("select queue_worker.send('orders', '{}')").fetchone() or ()
        looped.execute(f"set role {old}")
        assert looped.execute(read).fetchall() == [(1,), (2,), (3,), (sent_id,)]
    finally:
        looped.execute("reset role")
        for role in (shop, old):
            looped.execute(f"drop owned by {role}; drop role {role}")
