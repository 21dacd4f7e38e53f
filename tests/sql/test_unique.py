"""Unique messages: which message a key stands for, in whatever state that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql.engine import Engine

MODES = ["keep", "replace", "preserve_run_at", "unsafe_dedupe"]


def send(engine: Engine, payload: Any = None, key: str = "k", **options: Any) -> int:
    """Send under a key; options are those of SQL `send`."""
    given = {"unique_key": key, **options}
    named = "".join(f", {name} => %s" for name in given)
    return int(
        engine.value(f"select queue_worker.send(%s, %s{named})", engine.queue, Jsonb(payload or {}), *given.values())
    )


def live(engine: Engine) -> list[tuple[Any, ...]]:
    """(id, payload, state) of what is in the queue."""
    return [
        tuple(row) for row in engine.rows("select msg_id, payload, state from queue_worker.messages(%s)", engine.queue)
    ]


def end_failed(engine: Engine, delay: float = 60) -> None:
    engine.settle(others=[(engine.take_one(), "failed", delay, "", "e")])


# ----------------------------------------------------------------------------------------------------- waiting


def test_keep_returns_the_waiting_message_and_changes_nothing(engine: Engine) -> None:
    first = send(engine, {"n": 1}, priority=1)
    assert send(engine, {"n": 2}, priority=2, delay_seconds=60) == first
    assert live(engine) == [(first, {"n": 1}, "waiting")]
    assert engine.value("select headers from pgmq.q_work") == {"unique_key": "k", "priority": 1}


def test_replace_gives_it_payload_headers_and_time(engine: Engine) -> None:
    first = send(engine, {"n": 1}, max_attempts=2)
    assert send(engine, {"n": 2}, unique_mode="replace", delay_seconds=60, priority=9) == first
    assert live(engine) == [(first, {"n": 2}, "delayed")]
    assert engine.value("select headers from pgmq.q_work") == {"unique_key": "k", "priority": 9}
    assert engine.value("select has_priority from queue_worker_data.queues")
    assert send(engine, {"n": 3}, unique_mode="replace") == first
    assert live(engine) == [(first, {"n": 3}, "waiting")]


def test_preserve_run_at_gives_it_payload_and_headers_and_keeps_its_time(engine: Engine) -> None:
    first = send(engine, {"n": 1}, delay_seconds=60)
    before = engine.state(first)
    assert send(engine, {"n": 2}, unique_mode="preserve_run_at", timeout_seconds=5) == first
    assert live(engine) == [(first, {"n": 2}, "delayed")]
    assert engine.state(first) == before
    assert engine.value("select headers from pgmq.q_work") == {"unique_key": "k", "timeout_seconds": 5}


def test_replacing_wakes_whoever_sleeps(engine: Engine) -> None:
    send(engine, delay_seconds=60)
    engine.claim(1, sleep=True)
    engine.rows("listen queue_worker")
    send(engine, unique_mode="keep")
    assert list(engine.connection.notifies(timeout=0)) == []
    send(engine, unique_mode="replace")
    assert [one.payload for one in engine.connection.notifies(timeout=5, stop_after=1)] == ["work"]


def test_other_keys_other_queues_and_plain_sends_are_not_concerned(engine: Engine) -> None:
    other = Engine(engine.connection, "other").create()
    first = send(engine)
    assert send(engine, key="K") != first
    assert send(other) == 1
    engine.send({}, {"unique_key": "k"})
    engine.rows("select queue_worker.send('work', '{}', headers => '{\"unique_key\": \"k\"}')")
    assert engine.count("queue") == 4
    assert send(engine) == first


@pytest.mark.parametrize("mode", MODES)
def test_a_message_that_waits_for_its_retry_is_a_waiting_one(engine: Engine, mode: str) -> None:
    first = send(engine, {"n": 1})
    end_failed(engine)
    assert send(engine, {"n": 2}, unique_mode=mode) == first
    expected = {"replace": (2, "waiting"), "preserve_run_at": (2, "delayed")}.get(mode, (1, "delayed"))
    assert live(engine) == [(first, {"n": expected[0]}, expected[1])]


def test_a_replaced_retry_begins_anew_and_is_no_suspect(engine: Engine) -> None:
    first = send(engine, {"n": 1})
    for _ in range(2):
        end_failed(engine, 0)
    assert send(engine, {"n": 2}, unique_mode="replace") == first
    (row,) = engine.claim(1, suspects=0)
    assert (row.kind, row.failures, row.lost, row.payload) == ("job", 0, 0, '{"n": 2}')
    assert engine.settle(done=[(row.msg_id, row.read_ct, row.enqueued_at)]) == {}
    assert engine.trouble(first) is None


def test_a_late_answer_of_the_old_run_does_not_settle_the_new_payload(engine: Engine) -> None:
    first = send(engine, {"n": 1})
    old = engine.take_one()
    engine.age()
    assert send(engine, {"n": 2}, unique_mode="replace") == first
    assert engine.settle(done=[old]) == {first: "stale"}
    (row,) = engine.claim(1, suspects=0)
    assert (row.msg_id, row.payload, row.failures) == (first, '{"n": 2}', 0)


def test_replacing_a_killer_again_and_again_does_not_let_it_start_for_ever(engine: Engine) -> None:
    first = send(engine)
    starts = 0
    while engine.places(first) == ["queue"]:
        starts += len(engine.take(1, suspects=2, max_lost=3))
        engine.age()
        engine.claim(1, suspects=2, max_lost=3)  # found without an outcome: its loss is recorded
        engine.age()
        send(engine, {"n": starts}, unique_mode="replace")
        assert starts < 10
    assert engine.places(first) == ["dead"]


def test_a_ledger_takes_the_new_payload_of_a_message_that_has_run_for_other_work(engine: Engine) -> None:
    send(engine, {"n": 1})
    send(engine, {"n": 2}, unique_mode="replace")
    keys = [engine.value("select headers ->> 'key' from pgmq.q_work")]
    for n in (3, 4):
        end_failed(engine, 0)
        send(engine, {"n": n}, unique_mode="replace")
        keys.append(engine.value("select headers ->> 'key' from pgmq.q_work"))
    assert keys[0] is None
    assert len(set(keys)) == 3
    send(engine, unique_mode="replace", headers=Jsonb({"key": "mine"}))
    assert engine.value("select headers ->> 'key' from pgmq.q_work") == "mine"


def test_a_message_that_has_expired_keeps_nobody_from_sending(engine: Engine) -> None:
    first = send(engine)
    engine.rows('update pgmq.q_work set headers = headers || \'{"expires_at": "2020-01-01T00:00:00.000000Z"}\'')
    second = send(engine)
    assert second != first
    engine.rows('update pgmq.q_work set headers = headers || \'{"expires_at": "long ago"}\'')
    assert send(engine) == second


# ----------------------------------------------------------------------------------------------------- running

RUNNING = [
    ("keep", "waiting", "new"),
    ("replace", "waiting", "new"),
    ("preserve_run_at", "waiting", "new"),
    ("keep", "active", "same"),
    ("replace", "active", "same"),
    ("preserve_run_at", "active", "same"),
    ("unsafe_dedupe", "waiting", "same"),
    ("unsafe_dedupe", "active", "same"),
]


@pytest.mark.parametrize("locked", [False, True])
def test_a_running_message(engine: Engine, dsn: str, locked: bool) -> None:
    for mode, scope, answer in RUNNING:
        one = Engine(engine.connection, f"{mode}_{scope}").create()
        first = send(one, {"n": 1})
        held = one.take_one()
        before = one.state(first)
        with psycopg.connect(dsn) as other:
            if locked:  # as a handler's own transaction, or a settle that has not committed yet, does
                other.execute("select queue_worker.hold(%s, %s, %s, %s)", [one.queue, *held])
            sent = send(one, {"n": 2}, unique_mode=mode, unique_scope=scope)
        assert (mode, scope, "same" if sent == first else "new") == (mode, scope, answer)
        assert one.state(first) == before
        assert one.settle(done=[held]) == {}
        if answer == "new":
            # The key has moved on to the new message.
            assert send(one, {"n": 3}, unique_mode=mode, unique_scope=scope) == sent
        assert one.count("queue") == (1 if answer == "new" else 0)


def test_a_handler_that_sends_its_own_key_in_its_transaction_sends_a_new_message(engine: Engine) -> None:
    first = send(engine)
    held = engine.take_one()
    with engine.connection.transaction():
        assert engine.hold(held)
        second = send(engine)
        assert engine.settle(done=[held]) == {}
    assert second != first
    assert [row[0] for row in live(engine)] == [second]


def test_a_sender_that_has_not_committed_holds_back_the_message_that_it_keeps(engine: Engine, dsn: str) -> None:
    first = send(engine)
    with psycopg.connect(dsn) as other:
        assert other.execute("select queue_worker.send('work', '{}', unique_key => 'k')").fetchone() == (first,)
        assert engine.take(1) == []
    assert [one[0] for one in engine.take(1)] == [first]


# ----------------------------------------------------------------------------------------------------- gone


def bury(engine: Engine) -> None:
    engine.settle(others=[(engine.take_one(), "dead", 0, "rejected", "e")])


WAYS_OUT: dict[str, Callable[[Engine], Any]] = {
    "archived": lambda engine: engine.settle(done=[engine.take_one()]),
    "deleted": lambda engine: engine.settle(done=[engine.take_one()], on_success="delete"),
    "dead": bury,
    "pgmq.delete": lambda engine: engine.rows("select pgmq.delete('QUEUE', 1::bigint)"),
    "pgmq.archive": lambda engine: engine.rows("select pgmq.archive('QUEUE', 1::bigint)"),
    "pgmq.purge": lambda engine: engine.rows("select pgmq.purge_queue('QUEUE')"),
    "recreated": lambda engine: (engine.rows("select pgmq.drop_queue('QUEUE')"), engine.create(), engine.fill(1)),
}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_the_key_is_free_when_its_message_has_left_the_queue(engine: Engine, way: str) -> None:
    for mode in MODES:
        one = Engine(engine.connection, mode).create()
        first = send(one, {"n": 1})
        written = one.rows("select * from queue_worker_data.unique_keys")
        WAYS_OUT[way](one)
        assert one.rows("select * from queue_worker_data.unique_keys") == written
        others = one.count("queue")
        sent = send(one, {"n": 2}, unique_mode=mode, unique_scope="active")
        if mode == "unsafe_dedupe" and way == "dead":
            assert sent == first
            one.rows("select queue_worker.discard('QUEUE')")
            sent = send(one, {"n": 2}, unique_mode=mode)
        assert one.count("queue") == others + 1
        assert one.value("select message from pgmq.q_QUEUE where msg_id = %s", sent) == {"n": 2}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_a_period_answers_the_same_id_whatever_became_of_the_message(engine: Engine, way: str) -> None:
    for mode in MODES:
        one = Engine(engine.connection, mode).create()
        first = send(one, unique_seconds=3600)
        WAYS_OUT[way](one)
        others = one.count("queue")
        again = send(one, unique_mode=mode, unique_seconds=3600)
        if way == "recreated":  # that message never was in this queue
            assert one.count("queue") == others + 1
            continue
        assert again == first
        assert one.count("queue") == others
        one.rows("update queue_worker_data.unique_keys set until = clock_timestamp()")
        dead = mode == "unsafe_dedupe" and way == "dead"
        assert (send(one, unique_mode=mode, unique_seconds=3600) == first) == dead


def test_a_period_counts_from_the_first_send_and_ends(engine: Engine) -> None:
    first = send(engine, {"n": 1}, unique_seconds=3600)
    until = engine.value("select until from queue_worker_data.unique_keys")
    assert send(engine, {"n": 2}, unique_seconds=7200, unique_mode="replace") == first
    assert engine.value("select until from queue_worker_data.unique_keys") == until
    assert live(engine) == [(first, {"n": 2}, "waiting")]
    assert engine.value("select %s between now() and now() + interval '3601 s'", until)
    held = engine.take_one()
    assert send(engine, {"n": 3}, unique_mode="replace") == first  # running, and within the period
    engine.rows("update queue_worker_data.unique_keys set until = clock_timestamp()")
    second = send(engine, {"n": 3}, unique_mode="replace")
    assert second != first
    assert engine.settle(done=[held]) == {}


def test_a_redriven_message_keeps_its_key_unless_it_was_taken(engine: Engine) -> None:
    follow = (
        "select queue_worker_data.key_follows('work', %s, %s, '{\"unique_key\": \"k\"}', m.msg_id, m.enqueued_at)"
        " from pgmq.q_work m where m.msg_id = %s"
    )
    first = send(engine)
    sent_at = engine.state(first).enqueued_at
    bury(engine)
    engine.rows("select queue_worker.redrive('work')")
    ((second, _, _),) = live(engine)
    engine.rows(follow, first, sent_at, second)
    assert send(engine) == second
    third = engine.send()
    engine.rows(follow, first, sent_at, third)  # not the holder any more
    assert send(engine) == second
