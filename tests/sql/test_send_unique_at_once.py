"""Unique messages when many send at once, and the pruning of keys beside them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.helpers import wait_until
from tests.sql.engine import Engine
from tests.sql.race import race
from tests.sql.test_unique import MODES, bury, live, send


@pytest.mark.parametrize("mode", MODES)
def test_twenty_senders_of_one_key_send_one_message(engine: Engine, dsn: str, mode: str) -> None:
    def work(connection: psycopg.Connection[Any], number: int) -> set[int]:
        mine = Engine(connection)
        return {send(mine, {"n": number}, unique_mode=mode) for _ in range(50)}

    assert set().union(*race(dsn, 20, work)) == {1}
    assert engine.count("queue") == 1


def test_senders_of_one_key_among_workers_lose_nothing_and_leave_at_most_one_waiting(engine: Engine, dsn: str) -> None:
    def work(connection: psycopg.Connection[Any], number: int) -> set[int]:
        mine = Engine(connection)
        if number < 3:
            for _ in range(150):
                mine.settle(done=mine.take(5))
            return set()
        return {send(mine, {"n": n}, unique_mode=MODES[number % 2]) for n in range(50)}

    ids = set().union(*race(dsn, 8, work))
    assert engine.count("queue") <= 1
    assert engine.count("archive") + engine.count("queue") == len(ids)


def test_batches_with_reversed_keys_do_not_deadlock(engine: Engine, dsn: str) -> None:
    keys = [f"k{n}" for n in range(40)]

    def work(connection: psycopg.Connection[Any], number: int) -> list[int]:
        order = keys if number % 2 else keys[::-1]
        items = [{"payload": {"key": key}, "unique_key": key} for key in order]
        found: list[int] = []
        for _ in range(10):
            rows = connection.execute("select * from queue_worker.send_batch('work', %s)", [Jsonb(items)]).fetchall()
            found = [row[0] for row in rows]
        return found if number % 2 else found[::-1]

    answers = race(dsn, 6, work)
    assert all(one == answers[0] for one in answers)
    assert engine.count("queue") == 40


def test_a_second_sender_waits_for_the_first_ones_end(engine: Engine, dsn: str) -> None:
    waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    for end in ("rollback", "commit"):
        with psycopg.connect(dsn) as first, ThreadPoolExecutor(1) as pool:
            assert first.execute("select queue_worker.send('work', '{}', unique_key => %s)", [end]).fetchone()
            second = pool.submit(race, dsn, 1, lambda connection, _, end=end: send(Engine(connection), key=end))
            wait_until(lambda: engine.value(waits) == 1)
            first.execute(end)
            second.result(30)
        assert engine.value("select count(*) from pgmq.q_work where headers ->> 'unique_key' = %s", end) == 1


def test_a_batch_keeps_its_order_and_the_modes_of_its_items(engine: Engine) -> None:
    items = [
        {"payload": {"n": 1}, "unique_key": "b"},
        {"payload": {"n": 2}},
        {"payload": {"n": 3}, "unique_key": "a"},
        {"payload": {"n": 4}, "unique_key": "b", "unique_mode": "replace"},
        {"payload": {"n": 5}, "unique_key": "a"},
    ]
    ids = [row[0] for row in engine.rows("select * from queue_worker.send_batch('work', %s)", Jsonb(items))]
    assert ids == [1, 2, 3, 1, 3]
    assert [row[1] for row in sorted(live(engine))] == [{"n": 4}, {"n": 2}, {"n": 3}]


# ----------------------------------------------------------------------------------------------------- pruning


def prune(engine: Engine, count: int = 100, queue: str = "work") -> int:
    return int(engine.value("select queue_worker_data.prune_unique(%s, %s)", queue, count))


def kept(engine: Engine) -> list[str]:
    return [row[0] for row in engine.rows("select key from queue_worker_data.unique_keys order by key")]


def test_only_keys_that_hold_nothing_are_pruned(engine: Engine) -> None:
    send(engine, key="dead")
    bury(engine)
    send(engine, key="period", unique_seconds=60)
    for key in ("done1", "done2", "done3"):
        send(engine, key=key)
    engine.settle(done=engine.take(10))
    send(engine, key="waiting")
    assert [prune(engine, 2), prune(engine, 2), prune(engine, 2)] == [2, 1, 0]
    assert kept(engine) == ["dead", "period", "waiting"]
    engine.rows("select queue_worker.discard('work')")
    engine.rows("update queue_worker_data.unique_keys set until = now()")
    assert prune(engine) == 2
    engine.rows("select pgmq.drop_queue('work')")
    assert prune(engine) == 1


def test_a_key_in_use_is_neither_waited_for_nor_pruned(engine: Engine, dsn: str) -> None:
    send(engine)
    engine.settle(done=[engine.take_one()])
    with psycopg.connect(dsn) as other:
        sent = other.execute("select queue_worker.send('work', '{}', unique_key => 'k')").fetchone()
        assert prune(engine) == 0
    assert sent == (send(engine),)


def test_pruning_among_senders_breaks_no_key(engine: Engine, dsn: str) -> None:
    def work(connection: psycopg.Connection[Any], number: int) -> None:
        mine = Engine(connection)
        for n in range(60):
            if number < 2:
                prune(mine)
            elif number == 2:
                mine.settle(done=mine.take(3))
            else:
                send(mine, key=f"k{n % 3}")

    race(dsn, 6, work)
    doubles = "select count(*) - count(distinct headers ->> 'unique_key') from pgmq.q_work"
    assert engine.value(doubles) == 0
