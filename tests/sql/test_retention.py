"""What is kept for how long: every kind goes by its own age, in bounded batches, and nothing else goes."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.sql.engine import Engine
from tests.sql.test_operator import bury

DAY = 86_400


def prune(engine: Engine, archive: Any = None, count: int = 5000, failure: Any = None, dead: Any = None) -> int:
    return int(engine.value("select queue_worker.prune('QUEUE', %s, %s, %s, %s)", archive, count, failure, dead))


def shared(engine: Engine, count: int = 5000) -> int:
    return int(engine.value("select queue_worker.prune_shared(%s)", count))


def archive(engine: Engine, count: int, age: str) -> None:
    engine.rows(
        "insert into pgmq.a_QUEUE (msg_id, enqueued_at, archived_at, vt, message)"
        " select n + (select coalesce(max(a.msg_id), 1000000) from pgmq.a_QUEUE a), now(), now() - %s::interval, now(),"
        " '{}' from generate_series(1, %s) n",
        age,
        count,
    )


def fail(engine: Engine, count: int, age: str, queue: str = "work") -> None:
    engine.rows(
        "insert into queue_worker_data.failures (queue, msg_id, attempt, kind, error, failed_at)"
        " select %s, n, 1, 'failed', 'e', now() - %s::interval from generate_series(1, %s) n",
        queue,
        age,
        count,
    )


def count(engine: Engine, table: str) -> int:
    return int(engine.value(f"select count(*) from queue_worker_data.{table}"))


def test_null_keeps_everything_for_ever(engine: Engine) -> None:
    archive(engine, 3, "50 years")
    fail(engine, 3, "50 years")
    bury(engine)
    engine.rows("update queue_worker_data.dead_letters set dead_at = '1990-01-01'")
    assert prune(engine) == 0
    assert (engine.count("archive"), count(engine, "failures"), engine.count("dead")) == (3, 4, 1)


def test_every_kind_goes_by_its_own_age(engine: Engine) -> None:
    for age in ("3 days", "1 day"):
        archive(engine, 1, age)
        fail(engine, 1, age)
        bury(engine)
    engine.rows("update queue_worker_data.dead_letters set dead_at = now() - interval '3 days' where dead_id = 1")
    engine.rows("delete from queue_worker_data.failures where kind = 'dead'")
    waiting = engine.send()
    assert prune(engine, archive=2 * DAY) == 1
    assert (engine.count("archive"), count(engine, "failures"), engine.count("dead")) == (1, 2, 2)
    assert prune(engine, failure=2 * DAY) == 1
    assert (engine.count("archive"), count(engine, "failures"), engine.count("dead")) == (1, 1, 2)
    assert prune(engine, dead=2 * DAY) == 1
    assert (engine.count("archive"), count(engine, "failures"), engine.count("dead")) == (1, 1, 1)
    assert engine.places(waiting) == ["queue"]


def test_the_answer_says_when_to_call_again(engine: Engine) -> None:
    archive(engine, 25, "3 days")
    fail(engine, 12, "3 days")
    answers = [prune(engine, archive=DAY, failure=DAY, count=10) for _ in range(4)]
    assert answers == [10, 10, 5, 0]
    assert (engine.count("archive"), count(engine, "failures")) == (0, 0)


def test_a_queue_is_pruned_alone(engine: Engine) -> None:
    other = Engine(engine.connection, "other").create()
    for one in (engine, other):
        archive(one, 2, "3 days")
        fail(one, 2, "3 days", one.queue)
    assert prune(engine, archive=DAY, failure=DAY) == 2
    assert engine.rows("select queue, count(*) as n from queue_worker_data.failures group by 1") == [("other", 2)]
    assert other.value("select count(*) from pgmq.a_other") == 2


def test_the_previous_workers_call_still_works(engine: Engine) -> None:
    archive(engine, 2, "8 days")
    assert engine.value("select queue_worker.prune(queue => 'work', archive_seconds => 604800, max_count => 10)") == 2


def test_two_workers_that_prune_at_once_do_not_wait_for_each_other(dsn: str, engine: Engine) -> None:
    archive(engine, 5, "3 days")
    with psycopg.connect(dsn) as first:
        assert prune(Engine(first), archive=DAY, count=2) == 2
        assert prune(engine, archive=DAY) == 0
    assert prune(engine, archive=DAY) == 3


def test_a_row_that_somebody_holds_is_passed_over(dsn: str, engine: Engine) -> None:
    archive(engine, 3, "3 days")
    with psycopg.connect(dsn) as reader:
        reader.execute("select 1 from pgmq.a_work where msg_id = 1000002 for share")
        assert prune(engine, archive=DAY) == 2
    assert prune(engine, archive=DAY) == 1


def test_the_priority_lane_follows_what_waits(engine: Engine) -> None:
    def lane() -> bool:
        return bool(engine.value("select has_priority from queue_worker_data.queues"))

    engine.rows("select queue_worker_data.equip('work')")
    engine.send(headers={"priority": 3})
    assert lane()
    prune(engine)
    assert lane()
    engine.settle(done=engine.take(5))
    prune(engine)
    assert not lane()
    # What a sender could not note, because its neighbour held the row, is mended.
    engine.rows("alter table pgmq.q_work disable trigger queue_worker_priority")
    engine.send(headers={"priority": "any"})
    assert not lane()
    prune(engine)
    assert lane()


def test_what_belongs_to_no_queue_goes_by_age(engine: Engine) -> None:
    for age in ("401 days", "399 days"):
        engine.rows(
            "insert into queue_worker_data.audit (action, queue, at) values ('x', 'work', now() - %s::interval)", age
        )
        engine.rows(
            "insert into queue_worker_data.mails (key, recipient, request_hash, state, first_at)"
            " values (%s, 'r', 'h', 'sent', now() - %s::interval)",
            age,
            age,
        )
        engine.rows("select queue_worker.heartbeat(%s, 'h', 1, '0.1', '{work}', 5, 0)", age)
    engine.rows("update queue_worker_data.workers set last_seen = now() - interval '2 days' where worker like '401%'")
    fail(engine, 1, "31 days", "gone")
    fail(engine, 1, "29 days", "gone")
    fail(engine, 1, "300 days")
    fail(engine, 1, "31 days", "also-gone")
    assert shared(engine) == 1
    assert [count(engine, table) for table in ("audit", "mails", "workers")] == [1, 1, 1]
    rows = engine.rows("select queue, now() - failed_at < interval '30 days' as young from queue_worker_data.failures")
    assert sorted(rows) == [("gone", True), ("work", False)]
    assert shared(engine) == 0


def test_shared_batches_are_bounded(engine: Engine) -> None:
    engine.rows(
        "insert into queue_worker_data.audit (action, queue, at)"
        " select 'x', 'work', now() - interval '500 days' from generate_series(1, 7)"
    )
    assert [shared(engine, 3) for _ in range(4)] == [3, 3, 1, 0]


def test_companions_of_other_parts_are_pruned_where_they_are(engine: Engine) -> None:
    engine.rows(
        "create or replace function queue_worker_data.prune_unique(queue text, max_count int) returns bigint"
        " language sql as $$ select max_count::bigint + 1 $$"
    )
    assert prune(engine, count=10) == 11


def test_pruning_a_missing_queue_says_so(engine: Engine) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable, match='queue "none" does not exist'):
        engine.rows("select queue_worker.prune('none', 1)")


def test_the_oldest_of_a_long_archive_is_found_without_reading_it(engine: Engine) -> None:
    archive(engine, 20_000, "1 hour")
    archive_old = "update pgmq.a_work set archived_at = now() - interval '3 days' where msg_id = 1000007"
    engine.rows(archive_old)
    engine.rows("analyze pgmq.a_work")
    before = read(engine)
    assert prune(engine, archive=DAY) == 1
    assert read(engine) - before < 200


def read(engine: Engine) -> int:
    """Rows of the archive that scans have read so far."""
    engine.rows("select pg_stat_force_next_flush()")
    return int(
        engine.value(
            "select seq_tup_read + coalesce(idx_tup_fetch, 0) from pg_stat_user_tables where relname = 'a_work'"
        )
    )


def test_a_tuned_queue_is_vacuumed_by_its_dead_rows_not_by_its_length(engine: Engine) -> None:
    def options() -> list[str]:
        return engine.value("select coalesce(reloptions, '{}') from pg_class where oid = 'pgmq.q_work'::regclass")

    engine.rows("alter table pgmq.q_work reset (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold)")
    engine.rows("select queue_worker_data.tune('work')")
    tuned = ["autovacuum_vacuum_scale_factor=0.01", "autovacuum_vacuum_threshold=5000"]
    assert options() == tuned
    engine.rows("alter table pgmq.q_work set (autovacuum_vacuum_scale_factor = 0.5)")
    engine.rows("select queue_worker_data.tune('work')")
    assert "autovacuum_vacuum_scale_factor=0.5" in options()


def test_of_a_partitioned_archive_only_what_is_old_is_deleted(engine: Engine) -> None:
    """A ctid names one row in each partition."""
    engine.rows(
        "alter table pgmq.a_work rename to a_work_before;"
        "create table pgmq.a_work (like pgmq.a_work_before including defaults) partition by range (archived_at);"
        "create table pgmq.a_work_old partition of pgmq.a_work for values from (minvalue) to ('2026-01-01');"
        "create table pgmq.a_work_new partition of pgmq.a_work for values from ('2026-01-01') to (maxvalue);"
        "alter table pgmq.a_work owner to queue_owner;"
        "alter table pgmq.a_work_old owner to queue_owner; alter table pgmq.a_work_new owner to queue_owner"
    )
    archive(engine, 3, "400 days")
    archive(engine, 3, "1 minute")
    same = "select count(*) from pgmq.a_work_old o join pgmq.a_work_new n on o.ctid = n.ctid"
    assert engine.value(same) == 3
    assert prune(engine, DAY) == 3
    assert engine.value("select count(*) from pgmq.a_work_new") == 3
