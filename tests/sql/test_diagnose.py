"""What doctor finds in the database, and that it finds nothing where all is well."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tests.sql.engine import Engine


def found(engine: Engine, **arguments: Any) -> list[tuple[str, str | None, str, str]]:
    named = ", ".join(f"{name} => %s" for name in arguments)
    rows = engine.rows(f"select * from queue_worker.diagnose({named})", *arguments.values())
    return [tuple(row) for row in rows]


def test_nothing_is_found_where_all_is_well(engine: Engine) -> None:
    engine.send()
    assert found(engine, client_now=datetime.now(UTC)) == []


@pytest.mark.parametrize(("hours", "words"), [(1, "behind"), (-1, "ahead of")])
def test_a_wrong_clock_is_found(engine: Engine, hours: int, words: str) -> None:
    ((subject, _, finding, _),) = found(engine, client_now=datetime.now(UTC) + timedelta(hours=hours))
    assert subject == "clock"
    assert f" s {words} this machine's" in finding


def test_an_old_snapshot_is_found_with_the_line_that_ends_it(dsn: str, engine: Engine) -> None:
    with psycopg.connect(dsn, application_name="report") as other:
        other.execute("set transaction isolation level repeatable read")
        other.execute("select 1 from pgmq.q_work")
        # Other tests of the run have connections to the same server.
        ((subject, _, finding, fix),) = [one for one in found(engine, old_seconds=0) if "report" in one[2]]
        assert subject == "snapshot"
        assert "(report, idle in transaction)" in finding
        assert fix == f"select pg_terminate_backend({other.info.backend_pid});"
        assert found(engine) == []
    assert [one for one in found(engine, old_seconds=0) if "report" in one[2]] == []


def test_dead_rows_are_found(engine: Engine) -> None:
    engine.rows("alter table pgmq.q_work set (autovacuum_enabled = off)")
    engine.fill(50)
    engine.rows("delete from pgmq.q_work")
    engine.rows("select pg_stat_force_next_flush()")
    findings = found(engine, dead_rows=40)
    assert [one[0:2] for one in findings] == [("vacuum", "work"), ("vacuum", "work")]
    assert findings[0][2:] == (
        "autovacuum is off for pgmq.q_work", "alter table pgmq.q_work reset (autovacuum_enabled);",
    )  # fmt: skip
    assert findings[1][2:] == ("pgmq.q_work has 50 dead rows and 0 live ones", "vacuum pgmq.q_work;")
    for one in findings:
        engine.rows(one[3])
    engine.rows("select pg_stat_force_next_flush()")
    assert found(engine, dead_rows=40) == []


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("alter table pgmq.q_work disable trigger queue_worker_wake", "queue_worker_wake is missing or disabled"),
        ("drop trigger queue_worker_wake on pgmq.q_work", "queue_worker_wake is missing or disabled"),
        ("drop table pgmq.q_work", "its table is gone"),
        ("alter table pgmq.a_work owner to postgres", "its tables do not belong to queue_owner"),
    ],
)
def test_a_queue_that_is_not_whole_is_found_and_mended(engine: Engine, act: str, words: str) -> None:
    engine.rows(act)
    ((_, queue, finding, fix),) = found(engine)
    assert queue == "work"
    assert words in finding
    engine.rows(fix)
    assert found(engine) == []
    engine.send()
    assert len(engine.take(1)) == 1


def test_an_unlogged_queue_is_found(engine: Engine) -> None:
    engine.rows("alter table pgmq.q_work set unlogged")
    ((_, queue, finding, fix),) = found(engine)
    assert (queue, finding) == ("work", "its table is unlogged: a crash of the server empties it")
    engine.rows(fix)
    assert found(engine) == []


def test_a_queue_that_nobody_serves_is_found(engine: Engine) -> None:
    engine.send()
    engine.rows("update pgmq.q_work set vt = now() - interval '5 minutes'")
    ((subject, queue, finding, fix),) = found(engine)
    assert (subject, queue, fix) == ("worker", "work", "queue-worker start -q work")
    assert "a message is due since 30" in finding
    engine.rows("select queue_worker.heartbeat('w', 'h', 1, '0.1', '{work}', 5, 0)")
    assert found(engine) == []
    engine.rows("update queue_worker_data.workers set last_seen = now() - interval '1 minute'")
    assert len(found(engine)) == 1


def test_queues_of_others_are_not_looked_at(engine: Engine) -> None:
    engine.rows("select pgmq.create('theirs')")
    engine.rows("select pgmq.send('theirs', '{}')")
    engine.rows("update pgmq.q_theirs set vt = now() - interval '5 minutes'")
    assert found(engine) == []
    engine.rows("select queue_worker.heartbeat('w', 'h', 1, '0.1', '{theirs}', 5, 0)")
    assert [one[1] for one in found(engine)] == ["theirs"]
