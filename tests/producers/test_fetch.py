"""Loops of one's own: `Queue.fetch`, and how what it brought ends; the fences are those of a worker."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from queue_worker import LeaseLost, Queue, Reject, Retry
from queue_worker.errors import QueueNotFound, UsageError
from tests.sql.engine import Engine

pytestmark = pytest.mark.conformance(hosted=True)


class Task(BaseModel):
    n: int


def test_it_brings_what_is_due_in_order_and_hides_it_for_the_lease(engine: Engine) -> None:
    queue = Queue("work")
    queue.send_batch([{"n": 1}, {"n": 2}, {"n": 3}], headers={"trace": "x"}, max_attempts=3)
    queue.send({"n": 4}, delay="1h")
    found = queue.fetch(2, lease="5 minutes")
    assert [(one.payload, one.msg_id, one.attempt, one.max_attempts) for one in found] == [
        ({"n": 1}, 1, 1, 3), ({"n": 2}, 2, 1, 3),
    ]  # fmt: skip
    assert found[0].headers["trace"] == "x"
    assert found[0].key.startswith("work:1:")
    left = engine.value("select extract(epoch from vt - clock_timestamp()) from pgmq.q_QUEUE where msg_id = 1")
    assert 240 < left <= 300
    assert [one.msg_id for one in queue.fetch(10)] == [3]
    assert queue.fetch(10) == []


def test_each_end_does_what_it_says(engine: Engine) -> None:
    queue = Queue("work")
    queue.send_batch([{}] * 5)
    done, retried, rejected, released, extended = queue.fetch(5)
    done.complete()
    retried.retry("1 hour", "later")
    rejected.reject("no such user")
    released.release()
    extended.extend("2 hours")
    assert [engine.places(n) for n in range(1, 6)] == [["archive"], ["queue"], ["dead"], ["queue"], ["queue"]]
    due = dict(engine.rows("select msg_id, round(extract(epoch from vt - clock_timestamp()) / 3600) from pgmq.q_QUEUE"))
    assert due == {2: 1, 4: 0, 5: 2}
    assert engine.rows("select msg_id, kind, error from queue_worker_data.failures order by 1") == [
        (2, "failed", "later"), (3, "dead", "no such user"),
    ]  # fmt: skip
    assert engine.rows("select reason, error from queue_worker_data.dead_letters") == [("rejected", "no such user")]
    (again,) = queue.fetch(5)
    assert (again.msg_id, again.attempt) == (4, 1)


def test_retry_follows_the_queues_series_and_ends_in_the_dead_letters(engine: Engine) -> None:
    queue = Queue("work")
    queue.send({}, max_attempts=2)
    (first,) = queue.fetch(1)
    first.retry()
    assert 55 < engine.value("select extract(epoch from vt - clock_timestamp()) from pgmq.q_QUEUE") <= 60
    engine.age()
    (second,) = queue.fetch(1)
    assert second.attempt == 2
    second.retry("5s", "still no")
    assert engine.rows("select reason, error, attempts from queue_worker_data.dead_letters") == [
        ("attempts", "still no", 2)
    ]


@pytest.mark.parametrize("act", ["complete", "retry", "reject", "release", "extend"])
def test_a_stale_receipt_changes_nothing(engine: Engine, act: str) -> None:
    queue = Queue("work")
    queue.send({})
    (old,) = queue.fetch(1)
    engine.age()
    (new,) = Queue("work").fetch(1)
    before = engine.state(1)
    with pytest.raises(LeaseLost, match="message 1 of queue 'work' is not held any more"):
        getattr(old, act)(*(["x"] if act == "reject" else []))
    assert engine.state(1) == before
    new.complete()
    assert engine.places(1) == ["archive"]


def test_a_message_ends_once(engine: Engine) -> None:
    queue = Queue("work")
    queue.send({})
    (one,) = queue.fetch(1)
    one.complete()
    for again in (one.complete, one.retry, one.release, one.extend):
        with pytest.raises(LeaseLost):
            again()
    assert engine.places(1) == ["archive"]


def test_as_a_context_manager_it_ends_as_a_handler_would(engine: Engine) -> None:
    queue = Queue("work")
    queue.send_batch([{"n": n} for n in range(6)])
    done, later, refused, broken, stopped, own = queue.fetch(6)
    with done:
        pass
    with later:
        raise Retry("busy", delay=3600)
    with refused:
        raise Reject("no")
    with pytest.raises(ZeroDivisionError), broken:
        1 / 0  # noqa: B018
    with pytest.raises(KeyboardInterrupt), stopped:
        raise KeyboardInterrupt
    with own:
        own.release("1 hour")
    assert [engine.places(n) for n in range(1, 7)] == [
        ["archive"], ["queue"], ["dead"], ["queue"], ["queue"], ["queue"],
    ]  # fmt: skip
    failures = engine.rows("select msg_id, error from queue_worker_data.failures order by 1")
    assert [msg_id for msg_id, _ in failures] == [2, 3, 4]
    assert failures[2].error.startswith("ZeroDivisionError: division by zero")
    # Ctrl+C is no failure of the message: it is due at once, uncharged.
    (again,) = queue.fetch(6)
    assert (again.msg_id, again.attempt) == (5, 1)


def test_what_does_not_fit_the_model_is_a_dead_letter_and_what_fits_comes_as_it(engine: Engine) -> None:
    engine.send({"n": 1})
    engine.send({"x": 1})
    engine.send([1])
    assert [one.payload for one in Queue("work", model=Task).fetch(10)] == [Task(n=1)]
    assert engine.rows("select msg_id, reason from queue_worker_data.dead_letters order by 1") == [
        (2, "invalid"), (3, "invalid"),
    ]  # fmt: skip


def test_without_a_model_any_json_that_plain_pgmq_sent_comes_as_it_is(engine: Engine) -> None:
    for payload in ([1], "text", 5):
        engine.send(payload)
    assert [one.payload for one in Queue("work").fetch(10)] == [[1], "text", 5]


def test_an_expired_message_is_a_dead_letter_that_is_not_handed_out(engine: Engine) -> None:
    engine.send({}, {"expires_at": "2020-01-01T00:00:00.000000Z"})
    for harmless in ("2999-01-01T00:00:00.000000Z", "soon", 5, None, "2020-13-01T00:00:00.000000Z"):
        engine.send({}, {"expires_at": harmless})
    assert [one.msg_id for one in Queue("work").fetch(10)] == [2, 3, 4, 5, 6]
    assert engine.rows("select msg_id, reason from queue_worker_data.dead_letters") == [(1, "expired")]


def test_a_message_that_killed_processes_comes_alone(engine: Engine) -> None:
    for n in range(3):
        engine.send({"n": n})
    for _ in range(3):
        assert len(Queue("work").fetch(1)) == 1
        engine.age(1)
    queue = Queue("work")
    engine.rows("update queue_worker_data.trouble set lost = 3")
    engine.rows("update pgmq.q_QUEUE set vt = now() + interval '1 hour' where msg_id = 1")
    (other,) = queue.fetch(1)
    engine.age(1)
    # Lost three times by now: beside other work it stays where it is.
    (third,) = queue.fetch(10)
    assert (other.msg_id, third.msg_id) == (2, 3)
    other.release()
    third.complete()
    assert [one.msg_id for one in queue.fetch(10)] == [1]


def test_a_result_that_cannot_be_json_leaves_the_message_held(engine: Engine) -> None:
    queue = Queue("work")
    queue.send({})
    (one,) = queue.fetch(1)
    with pytest.raises(UsageError, match="the result cannot be written as JSON"):
        one.complete(float("nan"))
    one.complete()


def test_the_settings_of_the_queue_apply(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_WORKER_QUEUES__WORK__ON_SUCCESS", "delete")
    monkeypatch.setenv("QUEUE_WORKER_QUEUES__WORK__MAX_ATTEMPTS", "1")
    queue = Queue("work")
    queue.send_batch([{}, {}])
    done, failed = queue.fetch(2)
    done.complete()
    failed.retry()
    assert [engine.places(1), engine.places(2)] == [[], ["dead"]]


def test_a_paused_queue_brings_nothing(engine: Engine) -> None:
    engine.send({})
    engine.rows("select queue_worker.pause('QUEUE')")
    assert Queue("work").fetch(1) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"count": 0}, "fetch: count must be 1 to 1000, not 0"),
        ({"count": True}, "count must be 1 to 1000"),
        ({"lease": 0}, "fetch: lease must be at least 1s"),
        ({"lease": "soon"}, "lease 'soon': write a duration"),
    ],
)
def test_mistakes_are_one_line(engine: Engine, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Queue("work").fetch(**arguments)


def test_a_missing_queue_is_named(engine: Engine) -> None:
    with pytest.raises(QueueNotFound) as raised:
        Queue("nowhere").fetch(1)
    assert str(raised.value) == """queue "nowhere" does not exist (select queue_worker.create_queue('nowhere');)"""
