"""Ordered queues: one message of a group at a time, in order, groups in turn."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import psycopg
import pytest

from tests.helpers import wait_until
from tests.sql.engine import Engine, Receipt, receipt


@pytest.fixture
def ordered(engine: Engine) -> Engine:
    engine.rows("select queue_worker.create_queue('work', ordered => true)")
    return engine


def send(engine: Engine, key: str, count: int = 1, **headers: Any) -> list[int]:
    return [engine.send({"key": key}, {"group_key": key, **headers}) for _ in range(count)]


def ids(engine: Engine, count: int = 10) -> list[int]:
    return [one[0] for one in engine.take(count)]


def test_one_message_of_a_group_is_in_flight_at_a_time_and_in_order(ordered: Engine) -> None:
    first, second, third = send(ordered, "a", 3)
    for expected in (first, second, third):
        (one,) = ordered.take(10)
        assert one[0] == expected
        assert ordered.take(10) == []
        ordered.settle([one])
    assert ordered.take(10) == []


def test_groups_run_beside_each_other_and_beside_messages_without_a_group(ordered: Engine) -> None:
    a, b = send(ordered, "a", 2), send(ordered, "b", 2)
    free = [ordered.send() for _ in range(2)]
    assert ids(ordered) == [a[0], b[0], *free]


def test_a_failed_head_blocks_its_group_until_it_succeeds(ordered: Engine) -> None:
    first, second = send(ordered, "a", 2)
    (one,) = ordered.take(1)
    ordered.settle(others=[(one, "failed", 60, "", "boom")])
    assert ordered.take(10) == []
    ordered.age(first)
    (again,) = ordered.take(10)
    assert again[0] == first
    ordered.settle([again])
    assert ids(ordered) == [second]


def test_a_dead_head_lets_its_group_go_on(ordered: Engine) -> None:
    _, second = send(ordered, "a", 2)
    ordered.settle(others=[(ordered.take_one(), "dead", 0, "rejected", "no")])
    assert ids(ordered) == [second]


def test_a_released_head_is_due_again_at_once(ordered: Engine) -> None:
    first, _ = send(ordered, "a", 2)
    ordered.release([ordered.take_one()])
    assert ids(ordered) == [first]


def test_a_head_whose_lease_ended_is_claimed_again_before_its_successor(ordered: Engine) -> None:
    first, _ = send(ordered, "a", 2)
    (one,) = ordered.take(1)
    ordered.age(first)
    (row,) = [row for row in ordered.claim(10, suspects=1) if row.kind == "job"]
    assert row.msg_id == first
    assert ordered.settle([one]) == {first: "stale"}
    assert ordered.settle([receipt(row)]) == {}


def test_a_suspect_that_must_wait_blocks_its_own_group_only(ordered: Engine) -> None:
    first, _ = send(ordered, "a", 2)
    ordered.take(1)
    ordered.age(first)
    (other,) = send(ordered, "b")
    assert ids(ordered) == [other]
    rows = ordered.claim(10, suspects=1)
    assert [row.msg_id for row in rows if row.kind == "job"] == [first]


def test_a_delayed_head_blocks_its_group_until_it_is_due(ordered: Engine) -> None:
    first, second = send(ordered, "a", 2)
    ordered.rows("update pgmq.q_QUEUE set vt = now() + interval '1 h' where msg_id = %s", first)
    assert ordered.take(10) == []
    ordered.age(first)
    assert ids(ordered) == [first]
    ordered.rows("select pgmq.delete(queue_name => 'work', msg_id => %s)", first)
    assert ids(ordered) == [second]


def test_a_message_sent_behind_a_claim_that_is_under_way_is_not_forgotten(ordered: Engine, dsn: str) -> None:
    send(ordered, "a")
    with psycopg.connect(dsn) as slow:
        other = Engine(slow)
        (one,) = other.take(1)
        other.settle([one])
        (later,) = send(ordered, "a")
        assert ordered.take(10) == []
        slow.commit()
    assert ids(ordered) == [later]


def test_plain_deletes_and_purges_leave_nothing_that_blocks(ordered: Engine) -> None:
    send(ordered, "a", 2)
    ordered.take(1)
    ordered.rows("delete from pgmq.q_QUEUE")
    (again,) = send(ordered, "a")
    assert ids(ordered) == [again]
    ordered.rows("truncate pgmq.q_QUEUE")
    (last,) = send(ordered, "a")
    ordered.age()
    assert ids(ordered) == [last]


def test_one_large_tenant_does_not_starve_the_small_ones(ordered: Engine) -> None:
    ordered.rows(
        "insert into pgmq.q_QUEUE (vt, message, headers) select now(), '{}', jsonb_build_object('group_key', 'big')"
        " from generate_series(1, 10000)"
    )
    small = {f"small{n}": send(ordered, f"small{n}", 10) for n in range(10)}
    left, handled = {one for sent in small.values() for one in sent}, 0
    while left:
        receipts = ordered.take(10)
        handled += len(receipts)
        left -= {one[0] for one in receipts}
        ordered.settle(receipts)
    assert handled <= (10_000 + 100) * 0.02


def test_priority_decides_between_groups_and_order_within_one(ordered: Engine) -> None:
    low = send(ordered, "low", 2)
    high = send(ordered, "high", 2, priority=50)
    mixed = [*send(ordered, "mixed"), *send(ordered, "mixed", priority=90)]
    free = ordered.send(headers={"priority": 60})
    seen = []
    for _ in range(7):
        (one,) = ordered.take(1)
        seen.append(one[0])
        ordered.settle([one])
    # mixed's second has the highest priority of all, but its first one none: order comes before priority.
    assert seen[:3] == [free, *high]
    assert set(seen[3:]) == {*low, *mixed}
    assert seen.index(mixed[0]) < seen.index(mixed[1])


def test_per_group_lets_more_of_one_group_run_at_a_time(ordered: Engine) -> None:
    sent = send(ordered, "a", 5)
    ordered.rows("select queue_worker.set_concurrency('work', per_group => 2)")
    first, second = ordered.take(1)[0], ordered.take(10)[0]
    assert [first[0], second[0]] == sent[:2]
    assert ordered.take(10) == []
    ordered.settle([second])
    assert ids(ordered) == [sent[2]]


def test_a_queue_can_become_ordered_with_messages_in_it(engine: Engine) -> None:
    sent = send(engine, "a", 3)
    engine.rows("select queue_worker.create_queue('work', ordered => true)")
    assert ids(engine) == sent[:1]
    engine.rows("select queue_worker.create_queue('work')")
    assert engine.value("select ordered from queue_worker_data.queues where queue = 'work'")


def test_workers_at_once_never_run_two_of_a_group_and_keep_the_order(ordered: Engine, dsn: str) -> None:
    keys, per_key = 20, 15
    for _ in range(per_key):
        for number in range(keys):
            send(ordered, f"g{number}")
    key_of = dict(ordered.rows("select msg_id, message ->> 'key' from pgmq.q_QUEUE"))
    order: dict[str, list[int]] = {key: [] for key in key_of.values()}
    running: Counter[str] = Counter()
    lock, wrong = threading.Lock(), []

    def work() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            mine, held = Engine(connection), list[Receipt]()
            while sum(map(len, order.values())) < keys * per_key or held:
                with lock:
                    for one in held:
                        running[key_of[one[0]]] -= 1
                mine.settle(held)
                held = mine.take(3)
                with lock:
                    for one in held:
                        key = key_of[one[0]]
                        running[key] += 1
                        wrong.extend([key] if running[key] > 1 else [])
                        order[key].append(one[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert wrong == []
    assert all(seen == sorted(seen) and len(seen) == per_key for seen in order.values())
    assert ordered.count("archive") == keys * per_key


def test_senders_never_wait_for_claims_nor_for_each_other(ordered: Engine, dsn: str) -> None:
    send(ordered, "a")
    with psycopg.connect(dsn) as claimer, psycopg.connect(dsn) as sender:
        Engine(claimer).take(1)  # holds the group's row
        sender.execute("set lock_timeout = '1s'")
        send(Engine(sender), "a")  # holds its bell
        ordered.rows("set lock_timeout = '1s'")
        send(ordered, "a")
        sender.commit()
        claimer.commit()
    assert ordered.count("queue") == 3


def test_housekeeping_forgets_empty_groups_and_finds_lost_ones(ordered: Engine) -> None:
    send(ordered, "a")
    ordered.settle(ordered.take(1))
    ordered.take(1)
    assert ordered.value("select queue_worker_data.prune_groups('work', 100)") == 1
    assert ordered.value("select count(*) from queue_worker_data.groups") == 0
    (lost,) = send(ordered, "b")
    ordered.rows("delete from queue_worker_data.bells")
    assert ordered.take(1) == []
    ordered.rows("select queue_worker_data.prune_groups('work', 100)")
    assert ids(ordered) == [lost]


def test_a_sleeping_worker_is_told_when_a_group_is_free_again(ordered: Engine, dsn: str) -> None:
    send(ordered, "a", 2)
    one = ordered.take_one()
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute("listen queue_worker")
        Engine(listener).claim(1, worker="sleepy", sleep=True)
        ordered.settle([one])
        heard = wait_until(lambda: [note.payload for note in listener.notifies(timeout=0.2, stop_after=1)])
    assert heard == ["work"]
