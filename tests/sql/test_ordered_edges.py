"""Ordered queues where something happens beside the usual: late commits, stale entries, suspects, retries."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.sql.engine import Engine


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
