"""Ordered queues where something happens beside the usual: late commits, stale entries, suspects, retries."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from tests.helpers import wait_until
from tests.sql.engine import Engine

SCANS = (
    "select relname::text, pg_stat_get_numscans(oid) + pg_stat_get_xact_numscans(oid) from pg_class"
    " where relname in ('q_work', 'groups', 'bells')"
)


@pytest.fixture
def ordered(engine: Engine) -> Engine:
    engine.rows("select queue_worker.create_queue('work', ordered => true)")
    return engine


def send(engine: Engine, key: str, count: int = 1, **headers: Any) -> list[int]:
    return [engine.send({"key": key}, {"group_key": key, **headers}) for _ in range(count)]


def ids(engine: Engine, count: int = 10) -> list[int]:
    return [one[0] for one in engine.take(count)]


def test_a_message_that_is_committed_late_waits_for_the_one_that_runs(ordered: Engine, dsn: str) -> None:
    with psycopg.connect(dsn) as slow:
        (early,) = send(Engine(slow), "a")
        (late,) = send(ordered, "a")
        running = ordered.take_one()
        assert running[0] == late
        slow.commit()
    assert early < late
    assert ordered.take(10) == []
    ordered.settle(others=[(running, "failed", 60, "", "boom")])
    assert ordered.take(10) == []
    ordered.age(late)
    again = ordered.take_one()
    assert again[0] == late
    ordered.settle([again])
    assert ids(ordered) == [early]


def test_groups_that_are_not_due_after_all_do_not_hide_those_that_are(ordered: Engine) -> None:
    for number in range(30):
        send(ordered, f"busy{number}")
    held = ordered.take(30, lease=30)
    ordered.extend(held, 3600)
    # The leases as they were at first have ended.
    ordered.rows("update queue_worker_data.groups set due_at = now() - interval '1 s'")
    (free,) = send(ordered, "free")
    assert ids(ordered, 1) == [free]


def test_messages_without_a_group_do_not_wait_for_suspects(ordered: Engine) -> None:
    lost = [ordered.send() for _ in range(3)]
    ordered.take(3)
    ordered.age(*lost)
    fresh = ordered.send()
    assert ids(ordered, 3) == [fresh]


def test_an_idle_worker_is_told_when_a_message_without_a_group_will_be_due(ordered: Engine) -> None:
    ordered.rows("select pgmq.send('work', '{}'::jsonb, 30)")
    (row,) = ordered.claim(1, sleep=True)
    assert row.kind == "next"
    assert 20 < float(row.detail) <= 30


@pytest.mark.parametrize("more", ["", "select queue_worker.set_rate_limit('work', 1000, 1)"])
def test_who_empties_a_queue_does_not_lock_what_a_claim_has_locked_before_it(
    ordered: Engine, dsn: str, more: str
) -> None:
    send(ordered, "a")
    ordered.rows(more or "select 1")
    ordered.rows("select queue_worker.trip('work', 1, 1, 'down')")
    ordered.rows("update queue_worker_data.queues set broken_until = now()")
    got: list[int] = []
    with psycopg.connect(dsn) as purger, psycopg.connect(dsn, autocommit=True) as claimer:
        purger.execute("lock table pgmq.q_work in access exclusive mode")
        thread = threading.Thread(target=lambda: got.extend(ids(Engine(claimer))))
        thread.start()
        wait_until(lambda: ordered.rows("select 1 from pg_locks where not granted"))
        purger.execute("set local lock_timeout = '2s'")
        for table in ("groups", "bells", "limits", "slots", "queues"):
            purger.execute(f"select * from queue_worker_data.{table} for update")
        purger.commit()
        thread.join(60)
    assert got == [1]


def test_who_may_only_use_the_queue_rings_and_notes_like_everybody(ordered: Engine) -> None:
    ordered.rows("create role ringer")
    try:
        ordered.rows("grant usage on schema pgmq to ringer")
        ordered.rows("grant all on pgmq.q_work to ringer")
        ordered.rows("create policy ringer on pgmq.q_work to ringer using (true)")
        ordered.rows("set role ringer")
        ordered.rows(
            "insert into pgmq.q_work (vt, message, headers) select now() + interval '1 h', '{}',"
            """ '{"group_key": "a", "priority": 3}' from generate_series(1, 2)"""
        )
        ordered.rows("update pgmq.q_work set vt = now()")
        ordered.rows("delete from pgmq.q_work where msg_id = 1")
        ordered.rows("reset role")
        assert ids(ordered) == [2]
        assert ordered.value("select has_priority from queue_worker_data.queues where queue = 'work'")
    finally:
        ordered.rows("drop owned by ringer")
        ordered.rows("drop role ringer")


def test_a_breaker_does_not_wait_for_a_sender_that_has_not_committed(engine: Engine, dsn: str) -> None:
    with psycopg.connect(dsn) as sender:
        Engine(sender).send(headers={"priority": 5})
        engine.rows("set lock_timeout = '1s'")
        engine.rows("select queue_worker.trip('work', 60, 10, 'down')")
        engine.rows("select queue_worker.resume('work')")
        sender.commit()
    assert engine.value("select has_priority from queue_worker_data.queues where queue = 'work'")


def test_a_transaction_may_empty_or_drop_the_queue_that_it_sent_to(engine: Engine) -> None:
    with engine.connection.transaction():
        engine.send(headers={"priority": 5})
        engine.rows("select queue_worker.purge('work')")
        engine.send(headers={"priority": 5, "group_key": "a"})
        engine.rows("select queue_worker.create_queue('work', ordered => true)")
        engine.send(headers={"priority": 5})
        engine.rows("select queue_worker.drop_queue('work')")
        engine.create()
    assert ids(engine) == []
    assert not engine.value("select has_priority or ordered from queue_worker_data.queues where queue = 'work'")


def test_a_queue_that_is_made_again_remembers_nothing(ordered: Engine) -> None:
    ordered.rows("select queue_worker.set_concurrency('work', fleet => 1)")
    ordered.rows("select queue_worker.set_rate_limit('work', 1, 60)")
    send(ordered, "a", 2, priority=7)
    ordered.take_one()
    ordered.rows("select queue_worker.trip('work', 60, 10, 'down')")
    ordered.rows("select queue_worker.drop_queue('work')")
    for table in ("groups", "bells", "limits", "slots", "queues", "unique_keys", "trouble"):
        assert ordered.rows(f"select * from queue_worker_data.{table} where queue = 'work'") == []
    ordered.create()
    sent = [ordered.send() for _ in range(3)]
    assert ids(ordered) == sent


def test_a_queue_that_becomes_ordered_waits_for_what_runs(engine: Engine) -> None:
    first, second = send(engine, "a", 2)
    one, two = engine.take(2)
    engine.settle(others=[(one, "failed", 0, "", "boom")])
    engine.rows("select queue_worker.create_queue('work', ordered => true)")
    assert ids(engine) == []
    engine.settle([two])
    assert ids(engine) == [first]
    assert two[0] == second


def test_a_queue_that_grows_behind_a_warm_connection_is_claimed_by_its_indexes(ordered: Engine) -> None:
    ordered.rows("select queue_worker.set_concurrency('work', fleet => 1000)")
    for _ in range(12):
        ordered.claim(100)
    ordered.rows(
        "insert into pgmq.q_work (vt, message, headers) select now(), '{}',"
        " jsonb_build_object('group_key', 'g' || n % 5000) from generate_series(1, 50000) n"
    )
    held = ordered.take(100)
    before = dict(ordered.rows(SCANS))
    ordered.settle(held)
    assert len(ordered.take(100)) == 100
    after = dict(ordered.rows(SCANS))
    assert after == before
