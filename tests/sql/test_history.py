"""Counters and history: exact, written by the settle itself, and whole before and after they are folded."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.sql.engine import Engine


def overview(db: psycopg.Connection[Any], queue: str = "work") -> dict[str, Any]:
    with db.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute("select * from queue_worker.overview() where queue = %s", [queue]).fetchone()
    assert row is not None
    return row


def counters(db: psycopg.Connection[Any]) -> tuple[int, ...]:
    row = db.execute("select done, retried, dead, lost from queue_worker.counters() where queue = 'work'").fetchone()
    return row or (0, 0, 0, 0)


def heartbeat(db: psycopg.Connection[Any]) -> None:
    db.execute("select queue_worker.heartbeat('w', 'host', 1, '1', array['work'], 5, 2)")


def unfolded(db: psycopg.Connection[Any]) -> int:
    row = db.execute("select count(*) from queue_worker_data.tally").fetchone()
    assert row is not None
    return int(row[0])


def test_each_outcome_is_counted_once_and_a_release_never(db: psycopg.Connection[Any], engine: Engine) -> None:
    engine.fill(6)
    one, two, three, four, five, six = engine.take(6)
    engine.settle([one, two])
    engine.settle([], [(three, "retry", 60, "", "boom"), (four, "dead", 0, "rejected", "no")], "archive")
    engine.release([five])
    engine.settle([six], on_success="delete")
    assert counters(db) == (3, 1, 1, 0)
    assert engine.settle([one]) == {one[0]: "gone"}
    assert counters(db) == (3, 1, 1, 0)


def test_folding_changes_no_number_and_leaves_nothing_behind(db: psycopg.Connection[Any], engine: Engine) -> None:
    engine.fill(40)
    for receipt in engine.take(40):
        engine.settle([receipt])
    before, history = counters(db), overview(db)["history"]
    heartbeat(db)
    assert unfolded(db) == 0
    assert counters(db) == before == (40, 0, 0, 0)
    assert overview(db)["history"] == history
    assert sum(minute[1] for minute in history) == 40


def test_a_transaction_that_rolls_back_counts_nothing(db: psycopg.Connection[Any], engine: Engine) -> None:
    engine.fill(1)
    receipt = engine.take_one()
    with db.transaction(force_rollback=True):
        engine.settle([receipt])
    assert counters(db) == (0, 0, 0, 0)


def test_totals_survive_the_archive_and_its_pruning(db: psycopg.Connection[Any], engine: Engine) -> None:
    engine.fill(5)
    engine.settle(engine.take(5))
    db.execute("select queue_worker.prune('work', 0)")
    heartbeat(db)
    db.execute("update queue_worker_data.minutes set minute = minute - interval '8 days'")
    heartbeat(db)
    assert overview(db)["history"] == []
    assert overview(db)["completed"] == 5


def test_by_hand_completed_counts_as_done_and_cancelled_does_not(db: psycopg.Connection[Any], engine: Engine) -> None:
    first, second = engine.send(), engine.send()
    db.execute("select queue_worker.complete('work', %s)", [first])
    db.execute("select queue_worker.cancel('work', %s)", [second])
    assert counters(db) == (1, 0, 0, 0)


def test_two_who_fold_at_once_count_nothing_twice(db: psycopg.Connection[Any], dsn: Any, engine: Engine) -> None:
    engine.fill(10)
    for receipt in engine.take(10):
        engine.settle([receipt])
    with psycopg.connect(str(dsn)) as other, other.transaction():
        other.execute("select queue_worker_data.fold_tally()")
        heartbeat(db)
        assert counters(db) == (10, 0, 0, 0)
    assert counters(db) == (10, 0, 0, 0)


def test_states_of_a_queue_as_the_view_counts_them(db: psycopg.Connection[Any], engine: Engine) -> None:
    engine.fill(5)
    engine.rows("select queue_worker.send('work', '{}', delay_seconds => 60)")
    running, retried = engine.take(2)
    engine.settle([], [(retried, "retry", 60, "", "boom")])
    assert running
    found = overview(db)
    view = engine.rows("select waiting, delayed, running, dead from queue_worker.queues where queue = 'work'")
    assert (found["waiting"], found["delayed"], found["running"], found["dead"]) == tuple(view[0]) == (3, 2, 1, 0)
    assert not found["capped"]
    assert found["error_rate"] == 1.0


def test_a_long_queue_is_estimated_in_the_overview_and_counted_in_its_status(
    db: psycopg.Connection[Any], engine: Engine
) -> None:
    engine.fill(12_000)
    db.execute("analyze pgmq.q_work")
    found = overview(db)
    assert found["capped"]
    assert 11_000 < found["waiting"] < 13_000
    assert engine.value("select waiting from queue_worker.queue_status('work')") == 12_000


def pages_read(engine: Engine) -> int:
    for _ in range(2):  # the first fills the caches of the catalogue
        (row,) = engine.rows("explain (analyze, buffers, format json) select * from queue_worker.overview()")
    plan = row[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def test_four_times_the_messages_cost_the_overview_no_more(db: psycopg.Connection[Any], engine: Engine) -> None:
    engine.fill(15_000)
    db.execute("vacuum analyze pgmq.q_work")
    few = pages_read(engine)
    engine.fill(45_000)
    db.execute("vacuum analyze pgmq.q_work")
    assert pages_read(engine) < few * 1.2


def timing(engine: Engine, kind: str) -> tuple[int, list[int], float]:
    query = "select counts, total from queue_worker.list_timings() where kind = %s"
    before = engine.rows(query, kind)
    heartbeat(engine.connection)
    after = engine.rows(query, kind)
    assert [row.counts for row in after] == [row.counts for row in before], "folding changed it"
    # Folding adds the same numbers in another order, so the last digits may differ.
    assert [row.total for row in after] == pytest.approx([row.total for row in before], rel=1e-9)
    return (sum(before[0].counts), before[0].counts, before[0].total) if before else (0, [], 0.0)


def test_a_claim_notes_how_long_its_messages_had_been_due(engine: Engine) -> None:
    engine.fill(3)
    engine.rows("select queue_worker.send('work', '{}', delay_seconds => 3600)")
    # Due for 20 seconds, whenever they were sent.
    engine.rows("update pgmq.q_QUEUE set vt = now() - interval '20 s' where vt <= now()")
    assert len(engine.take(10)) == 3
    count, buckets, total = timing(engine, "pickup")
    assert count == buckets[11] == 3
    assert 60 <= total < 90
    engine.age(1)
    (again,) = engine.take(1, suspects=1)
    assert again[1] == 2
    assert timing(engine, "pickup")[0] == 4


def test_pickups_of_a_queue_with_lanes_are_noted_too(engine: Engine) -> None:
    engine.rows("select queue_worker.send('work', '{}', priority => 5)")
    engine.rows("select queue_worker.send('work', '{}')")
    assert len(engine.take(2)) == 2
    assert timing(engine, "pickup")[0] == 2


def test_the_total_of_ten_thousand_long_pickups_is_exact(db: psycopg.Connection[Any], engine: Engine) -> None:
    # All in one bucket, whose sum as a real (7 digits) would round away the fraction of each.
    db.execute(
        "insert into queue_worker_data.tally (queue, pickups)"
        " values ('work', array_fill(2000.03125::real, array[10000]))"
    )
    assert timing(engine, "pickup")[2] == 10_000 * 2000.03125


def test_a_row_made_due_since_ever_is_claimed_and_measured_by_nobody(engine: Engine) -> None:
    engine.fill(1)
    engine.rows("update pgmq.q_QUEUE set vt = '-infinity'")
    assert len(engine.take(1)) == 1
    assert timing(engine, "pickup")[0] == 0


def test_what_workers_measured_adds_up(db: psycopg.Connection[Any], engine: Engine) -> None:
    for _ in range(2):
        db.execute(
            "select queue_worker.record_timings(%s, %s)",
            [
                '[{"queue": "work", "bounds": [1, 5], "counts": [1, 2, 3], "total": 40}]',
                '[{"name": "lost_leases", "queue": "work", "count": 2}]',
            ],
        )
    assert timing(engine, "duration") == (12, [2, 4, 6], 80)
    assert engine.value("select count from queue_worker.list_counts() where name = 'lost_leases'") == 4


def test_a_queue_that_belongs_to_somebody_else_hides_no_other(db: psycopg.Connection[Any], engine: Engine) -> None:
    engine.fill(2)
    db.execute("select pgmq.create('others')")
    db.execute("alter table pgmq.q_others owner to postgres; revoke all on pgmq.q_others from public, queue_owner")
    assert overview(db)["waiting"] == 2
    assert overview(db, "others")["waiting"] is None


def test_a_dropped_queue_takes_its_numbers_along(db: psycopg.Connection[Any], engine: Engine) -> None:
    engine.fill(2)
    engine.settle(engine.take(2))
    heartbeat(db)
    db.execute("select queue_worker.drop_queue('work')")
    heartbeat(db)
    for table in ("totals", "minutes", "timings", "tally"):
        assert db.execute(f"select count(*) from queue_worker_data.{table}").fetchone() == (0,), table
    db.execute("select queue_worker.create_queue('work')")
    assert overview(db)["completed"] == 0


def test_what_a_worker_brings_after_a_queue_was_dropped_is_dropped_too(
    db: psycopg.Connection[Any], engine: Engine
) -> None:
    # Claimed and never settled: it has no totals.
    engine.fill(2)
    engine.take(2)
    heartbeat(db)
    db.execute("select pgmq.drop_queue('work')")
    late = """select queue_worker.record_timings('[{"queue": "work", "bounds": [1], "counts": [1, 0], "total": 1}]',
        '[{"name": "lost_leases", "queue": "work", "count": 1}]')"""
    db.execute(late)
    heartbeat(db)
    for table in ("timings", "counts"):
        assert db.execute(f"select count(*) from queue_worker_data.{table}").fetchone() == (0,), table


def test_a_queue_that_is_dropped_and_made_at_once_counts_from_nothing(
    db: psycopg.Connection[Any], engine: Engine
) -> None:
    engine.fill(4)
    engine.settle(engine.take(2))
    heartbeat(db)
    engine.settle(engine.take(2))
    db.execute("select queue_worker.drop_queue('work')")
    db.execute("select queue_worker.create_queue('work')")
    heartbeat(db)
    assert overview(db)["completed"] == 0
    assert overview(db)["history"] == []
    assert db.execute("select count(*) from queue_worker.list_timings()").fetchone() == (0,)


def test_a_settle_in_a_transaction_with_an_older_view_never_fails_over_counters(
    dsn: str, db: psycopg.Connection[Any], engine: Engine
) -> None:
    engine.fill(1)
    engine.settle(engine.take(1))
    with psycopg.connect(dsn, autocommit=True) as handler:
        handler.execute("begin isolation level repeatable read")
        assert handler.execute("select count(*) from queue_worker_data.tally").fetchone() != (0,)
        heartbeat(db)
        # So often that it would have added up at least once.
        handler.execute("select setseed(0.5)")
        handler.execute("select queue_worker_data.count_settled('work', done => 1) from generate_series(1, 20000)")
        handler.execute("commit")
    assert overview(db)["completed"] == 20001
