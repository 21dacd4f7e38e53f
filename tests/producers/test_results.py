"""Waiting for what became of messages, and what follows a batch; the SQL is that of sql/0013_results.sql."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from queue_worker import JobFailed, Queue
from queue_worker.errors import QueueNotFound, UsageError
from tests.sql.engine import Engine

pytestmark = pytest.mark.conformance(hosted=True)


def finish(engine: Engine, value: str | None = None) -> None:
    """End the next due message as done, as a worker does: with the JSON text of its result, or without one."""
    one = engine.take_one()
    assert engine.settle([one] if value is None else [], [] if value is None else [(one, "result", 0, "", value)]) == {}


def bury(engine: Engine) -> None:
    assert engine.settle(others=[(engine.take_one(), "dead", 0, "rejected", "no such user")]) == {}


@pytest.mark.parametrize(
    ("kept", "expected"), [('{"url": "x"}', {"url": "x"}), ("[1]", [1]), ("null", None), (None, None)]
)
def test_a_result_is_what_the_handler_returned(engine: Engine, kept: str | None, expected: Any) -> None:
    queue = Queue("work")
    sent = queue.send({})
    finish(engine, kept)
    assert queue.result(sent) == expected


def test_it_waits_for_a_message_that_is_not_done_yet(engine: Engine) -> None:
    queue = Queue("work")
    sent = queue.send({})
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(queue.result(sent, timeout="1 minute")))
    waiting.start()
    finish(engine, "5")
    waiting.join()
    assert found == [5]


def test_a_dead_letter_raises_its_reason_and_error(engine: Engine) -> None:
    queue = Queue("work")
    sent = queue.send({})
    bury(engine)
    with pytest.raises(JobFailed, match="message 1 failed: rejected: no such user") as failed:
        queue.result(sent)
    assert (failed.value.msg_id, failed.value.reason, failed.value.error) == (sent, "rejected", "no such user")


def test_a_message_that_goes_on_waiting_raises_timeout_error(engine: Engine) -> None:
    queue = Queue("work")
    with pytest.raises(TimeoutError, match="message 1 of queue 'work' is still delayed"):
        queue.result(queue.send({}, delay="1h"), timeout=0)
    with pytest.raises(TimeoutError, match="message 2 of queue 'work' is still waiting"):
        queue.wait([queue.send({})], timeout=0.1)


def test_many_are_waited_for_and_come_in_the_order_asked(engine: Engine) -> None:
    queue = Queue("work")
    first, second, third = queue.send_batch([{}, {}, {}])
    for value in ("1", "2", "3"):
        finish(engine, value)
    assert queue.wait([third, first, second]) == [3, 1, 2]
    assert queue.wait([]) == []
    broken = queue.send({})
    bury(engine)
    with pytest.raises(JobFailed):
        queue.wait([first, broken])


def test_what_is_nowhere_is_said_at_once(engine: Engine) -> None:
    with pytest.raises(UsageError, match="queue 'work' has no message 77"):
        Queue("work").result(77)
    with pytest.raises(QueueNotFound, match="nowhere"):
        Queue("nowhere").result(1)


def test_what_follows_a_batch_is_sent_when_all_of_it_has_ended(engine: Engine) -> None:
    engine.rows("select queue_worker.create_queue('after')")
    ids = Queue("work").send_batch([{"n": 1}, {"n": 2}], then=("after", {"batch": "b1"}))
    assert len(ids) == 2
    finish(engine, "")
    assert engine.value("select count(*) from pgmq.q_after") == 0
    finish(engine, "")
    assert engine.rows("select message from pgmq.q_after") == [({"batch": "b1"},)]


def test_loops_of_ones_own_keep_results_and_count_batches(engine: Engine, db: psycopg.Connection[Any]) -> None:
    queue = Queue("work")
    engine.rows("select queue_worker.create_queue('after')")
    ids = queue.send_batch([{}, {}, {}], then=("after", {}))
    first, second, third = queue.fetch(3)
    first.complete({"n": 1})
    second.complete()
    assert engine.value("select count(*) from pgmq.q_after") == 0
    third.complete(connection=db)
    assert engine.value("select count(*) from pgmq.q_after") == 1
    assert queue.wait(ids) == [{"n": 1}, None, None]


def test_an_empty_batch_is_followed_at_once(engine: Engine) -> None:
    engine.rows("select queue_worker.create_queue('after')")
    assert Queue("work").send_batch([], then=("after", {})) == []
    assert engine.value("select count(*) from pgmq.q_after") == 1


def test_a_follow_up_that_could_not_be_sent_sends_nothing(engine: Engine) -> None:
    with pytest.raises(QueueNotFound, match="later"):
        Queue("work").send_batch([{}], then=("later", {}))
    with pytest.raises(UsageError, match="NaN"):
        Queue("work").send_batch([{}], then=("work", {"n": float("nan")}))
    assert engine.count("queue") == 0


def test_a_message_is_cancelled_or_completed_by_who_sent_it(engine: Engine) -> None:
    queue = Queue("work")
    cancelled, completed = queue.send({}), queue.send({})
    assert queue.cancel(cancelled)
    assert queue.complete(completed)
    assert not queue.cancel(cancelled)
    with pytest.raises(JobFailed, match="cancelled"):
        queue.result(cancelled)
    assert queue.result(completed) is None
    with pytest.raises(QueueNotFound):
        Queue("nowhere").complete(1)
