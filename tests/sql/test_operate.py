"""What operators do to live messages and whole queues: cancel, complete, purge, drop."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from tests.sql.engine import Engine
from tests.sql.test_operator import bury


def found(engine: Engine, msg_id: int) -> Any:
    (row,) = engine.rows("select * from queue_worker.message('QUEUE', %s)", msg_id)
    return row


def audit(engine: Engine) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in engine.rows("select action, queue, detail from queue_worker.audit order by audit_id")]


def cancel(engine: Engine, msg_id: int) -> bool:
    return bool(engine.value("select queue_worker.cancel('QUEUE', %s)", msg_id))


def complete(engine: Engine, msg_id: int) -> bool:
    return bool(engine.value("select queue_worker.complete('QUEUE', %s)", msg_id))


@pytest.fixture
def notes(dsn: str) -> Any:
    """A connection that hears what workers are told."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("listen queue_worker")
        yield connection


def heard(connection: psycopg.Connection[Any]) -> list[str]:
    connection.execute("select 1")
    return [note.payload for note in connection.notifies(timeout=0)]


def test_a_waiting_or_delayed_message_that_is_cancelled_never_runs(engine: Engine, notes: Any) -> None:
    waiting = engine.send({"n": 1}, {"mine": True})
    delayed = int(engine.value("select queue_worker.send('work', '{}', 600)"))
    for msg_id in (waiting, delayed):
        assert cancel(engine, msg_id)
        assert engine.places(msg_id) == ["archive"]
    assert engine.take(5) == []
    row = found(engine, waiting)
    assert (row.state, row.payload, row.headers.pop("cancelled_at")[:2]) == ("cancelled", {"n": 1}, "20")
    assert row.headers == {"mine": True}
    assert heard(notes) == []
    assert not cancel(engine, waiting)
    assert not cancel(engine, 99)
    assert audit(engine) == [
        ("cancel", "work", {"msg_id": waiting, "running": False}),
        ("cancel", "work", {"msg_id": delayed, "running": False}),
    ]


def test_the_late_result_of_a_cancelled_message_changes_nothing(engine: Engine, notes: Any) -> None:
    msg_id, neighbour = engine.send(), engine.send()
    receipts = engine.take(2)
    engine.settle(others=[(receipts[0], "failed", 0, "", "first")])
    held = engine.take_one()
    assert cancel(engine, msg_id)
    assert heard(notes) == [f"cancel work {msg_id}"]
    assert engine.trouble(msg_id) is None
    assert engine.extend([held]) == [msg_id]
    answers = engine.settle(
        done=[held], others=[(held, "failed", 0, "", "late"), (held, "dead", 0, "rejected", "late")]
    )
    assert answers == {msg_id: "gone"}
    row = found(engine, msg_id)
    assert (row.state, [one["error"] for one in row.failures]) == ("cancelled", ["first"])
    assert engine.places(msg_id) == ["archive"]
    assert engine.settle(done=[receipts[1]]) == {}
    assert found(engine, neighbour).state == "archived"


def test_any_headers_survive_a_cancel(engine: Engine) -> None:
    for headers, kept in [(None, {}), ({"a": 1}, {"a": 1}), ([1], {"headers": [1]}), ("x", {"headers": "x"})]:
        msg_id = engine.send(headers=headers)
        assert cancel(engine, msg_id)
        row = found(engine, msg_id)
        assert row.headers.pop("cancelled_at")
        assert (row.state, row.headers) == ("cancelled", kept)


def test_a_message_completed_by_hand_is_done(engine: Engine, notes: Any) -> None:
    msg_id = engine.send({"a": 1}, {"h": 1})
    held = engine.take_one()
    assert complete(engine, msg_id)
    assert not complete(engine, msg_id)
    row = found(engine, msg_id)
    assert (row.state, row.payload, row.headers) == ("archived", {"a": 1}, {"h": 1})
    assert engine.settle(others=[(held, "failed", 0, "", "late")]) == {msg_id: "gone"}
    assert heard(notes) == []
    assert audit(engine) == [("complete", "work", {"msg_id": msg_id, "running": True})]


@pytest.mark.parametrize(
    ("call", "lines"),
    [
        ("cancel('work', 1)", "busy"),
        ("complete('work', 1)", "busy"),
        ("purge('work')", "busy"),
        ("drop_queue('work')", "busy"),
        ("purge_subject('ann')", "held by a transaction of a handler"),
    ],
)
def test_a_message_in_its_handlers_transaction_is_not_waited_for_without_end(
    dsn: str, engine: Engine, call: str, lines: str
) -> None:
    engine.send({"who": "ann"})
    held = engine.take_one()
    with psycopg.connect(dsn) as handler:
        assert Engine(handler).hold(held)
        with pytest.raises(psycopg.errors.LockNotAvailable, match=lines):
            engine.rows(f"select queue_worker.{call}")
    assert engine.places(held[0]) == ["queue"]
    assert audit(engine) == []


def test_purge_deletes_all_live_messages_and_nothing_else(engine: Engine) -> None:
    dead = bury(engine)
    engine.fill(5)
    engine.settle(done=[engine.take_one()])
    first, second = engine.take(2)
    engine.settle(others=[(first, "failed", 60, "", "e")])
    assert engine.value("select queue_worker.purge('work')") == 4
    assert (engine.count("queue"), engine.count("archive"), engine.places(dead)) == (0, 1, ["dead"])
    assert engine.value("select count(*) from queue_worker_data.trouble") == 0
    assert engine.settle(done=[second]) == {second[0]: "gone"}
    assert engine.send() > second[0]
    assert audit(engine) == [("purge", "work", {"count": 4})]


def test_a_dropped_queue_leaves_its_dead_letters_to_its_successor(engine: Engine) -> None:
    Engine(engine.connection, "other").create().send()
    dead = bury(engine, {"a": 1})
    failed = engine.send()
    engine.settle(others=[(engine.take_one(), "failed", 60, "", "e")])
    engine.rows("select queue_worker.pause('work')")
    engine.rows("select queue_worker.drop_queue('work')")
    assert engine.rows("select queue, waiting from queue_worker.queues") == [("other", 1)]
    assert engine.value("select count(*) from queue_worker_data.trouble") == 0
    assert engine.value("select count(*) from queue_worker_data.queues where queue = 'work'") == 0
    assert engine.value("select to_regclass('pgmq.a_work') is null")
    assert audit(engine)[-1] == ("drop_queue", "work", {"count": 1})
    with pytest.raises(psycopg.errors.UndefinedTable, match='queue "work" does not exist'):
        engine.rows("select queue_worker.drop_queue('work')")

    engine.create()
    assert engine.rows("select dead, paused_at from queue_worker.queues where queue = 'work'") == [(1, None)]
    assert engine.send() == dead
    engine.send()
    # What died before has its own history, what has its number now has none.
    states = {row.state: row.failures for row in engine.rows("select * from queue_worker.message('work', %s)", dead)}
    assert (states["waiting"], [one["error"] for one in states["dead"]]) == ([], ["why"])
    assert found(engine, failed).failures == []
    assert engine.value("select queue_worker.redrive('work')") == 1
    redriven = engine.value("select max(msg_id) from pgmq.q_work")
    assert [one["error"] for one in found(engine, redriven).failures] == ["why"]


def test_a_queue_whose_tables_were_dropped_by_hand_can_be_dropped(engine: Engine) -> None:
    engine.rows("drop table pgmq.q_work")
    engine.rows("select queue_worker.drop_queue('work')")
    assert engine.value("select count(*) from pgmq.meta") == 0
    assert engine.value("select to_regclass('pgmq.a_work') is null")
    engine.create()
    assert engine.send() == 1


def test_names_that_are_wrong_are_refused_before_anything_happens(engine: Engine) -> None:
    for call in ("cancel('%s', 1)", "complete('%s', 1)", "purge('%s')", "drop_queue('%s')"):
        with pytest.raises(psycopg.errors.UndefinedTable, match='queue "none" does not exist'):
            engine.rows(f"select queue_worker.{call % 'none'}")
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="is not allowed"):
            engine.rows(f"select queue_worker.{call % 'a; drop'}")


def test_what_several_people_cancel_at_once_is_cancelled_once(dsn: str, engine: Engine) -> None:
    msg_id = engine.send()
    answers: list[bool] = []
    barrier = threading.Barrier(4)

    def run() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            barrier.wait(10)
            answers.append(cancel(Engine(connection), msg_id))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False, False, False, True]
    assert engine.places(msg_id) == ["archive"]
    assert len(audit(engine)) == 1
