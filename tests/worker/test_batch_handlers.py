"""Batch handlers: one outcome per message; who fails is found by running each alone, and nobody else is charged."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from queue_worker import App, Job, Reject, events
from queue_worker.errors import ConfigError, TransportUnavailable, UsageError
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.worker.kit import Door, hurry

pytestmark = pytest.mark.conformance(hosted=True)


class Numbered(BaseModel):
    n: int


Jobs = list[Job[Numbered]]


def batch_app(handler: Callable[[Jobs], Any], **options: Any) -> App:
    app = App(builtins=False)
    app.processor("work", batch=True, **{"cycle": 0.1, "retry": (600,), "concurrency": 1, **options})(handler)
    return app


def as_async(handler: Callable[[Jobs], Any]) -> Callable[[Jobs], Any]:
    """The same handler as a coroutine."""

    async def handle(jobs: Jobs) -> Any:
        await asyncio.sleep(0)
        return handler(jobs)

    return handle


@pytest.fixture(params=["def", "async def"])
def kind(request: pytest.FixtureRequest) -> Callable[[Callable[[Jobs], Any]], Callable[[Jobs], Any]]:
    """Makes a handler of either kind."""
    return as_async if request.param == "async def" else lambda handler: handler


def charged(engine: Engine) -> list[Any]:
    return [tuple(row) for row in engine.rows("select msg_id, kind from queue_worker.failures order by failure_id")]


def test_a_handler_gets_up_to_batch_size_messages_and_all_are_done_when_it_returns(
    dsn: str, engine: Engine, kind: Any
) -> None:
    sizes: list[int] = []
    engine.fill(25)
    with running(dsn, batch_app(kind(lambda jobs: sizes.append(len(jobs))), batch_size=10)):
        wait_until(lambda: engine.count("archive") == 25)
    assert (sorted(sizes), charged(engine)) == ([5, 10, 10], [])


def test_each_message_gets_the_outcome_that_the_handler_gives_it(dsn: str, engine: Engine, kind: Any) -> None:
    engine.fill(5)

    def handle(jobs: Jobs) -> None:
        one, two, three, four, _ = jobs
        one.ack()
        one.reject("the first decision counts")
        two.retry("later", delay=500)
        three.reject("broken")
        four.fail(ValueError("four"))

    with running(dsn, batch_app(kind(handle))):
        wait_until(lambda: engine.count("archive") == 2 and engine.count("dead") == 1)
        wait_until(lambda: len(charged(engine)) == 3)
    assert engine.rows("select msg_id from pgmq.a_work order by 1") == [(1,), (5,)]
    assert engine.rows("select msg_id, reason, error from queue_worker.dead_letters") == [(3, "rejected", "broken")]
    failures = dict(engine.rows("select msg_id, error from queue_worker.failures where kind = 'failed'"))
    assert failures[2] == "later"
    assert failures[4] == "ValueError: four"
    waits = dict(engine.rows("select msg_id, ceil(extract(epoch from vt - now()) / 100)::int from pgmq.q_work"))
    assert waits == {2: 5, 4: 6}


def test_an_exception_charges_nobody_but_the_message_that_raises_alone(dsn: str, engine: Engine, kind: Any) -> None:
    seen: list[list[int]] = []
    engine.fill(5)

    def handle(jobs: Jobs) -> None:
        seen.append([job.payload.n for job in jobs])
        if jobs[0].payload.n == 1:
            jobs[0].ack()
        if any(job.payload.n == 3 for job in jobs):
            raise ValueError("three")

    with running(dsn, batch_app(kind(handle))):
        wait_until(lambda: engine.count("archive") == 4)
        wait_until(lambda: charged(engine))
        # What has failed before stays alone, so that it takes no neighbour with it.
        engine.rows("insert into pgmq.q_work (vt, message) values (now(), '{\"n\": 9}'), (now(), '{\"n\": 9}')")
        hurry(engine)
        wait_until(lambda: engine.count("archive") == 6)
        wait_until(lambda: len(charged(engine)) == 2)
    assert seen[:5] == [[1, 2, 3, 4, 5], [2], [3], [4], [5]]
    assert [3] in seen[5:]
    assert all(3 not in batch for batch in seen[5:] if len(batch) > 1)
    assert charged(engine) == [(3, "failed"), (3, "failed")]


def test_an_invalid_payload_is_a_dead_letter_alone_and_never_seen(dsn: str, engine: Engine, kind: Any) -> None:
    seen: list[list[int]] = []
    engine.rows(
        "insert into pgmq.q_work (vt, message) values (now(), '{\"n\": 1}'), (now(), '{}'), (now(), null),"
        " (now(), '{\"n\": 4}')"
    )

    def handle(jobs: Jobs) -> None:
        seen.append([job.payload.n for job in jobs])

    with running(dsn, batch_app(kind(handle))):
        wait_until(lambda: engine.count("archive") == 2 and engine.count("dead") == 2)
    assert seen == [[1, 4]]
    assert engine.rows("select msg_id, reason from queue_worker.dead_letters order by 1") == [
        (2, "invalid"),
        (3, "invalid"),
    ]


def test_what_is_nobodys_fault_gives_the_whole_batch_back(dsn: str, engine: Engine) -> None:
    calls: list[int] = []
    engine.fill(4)

    def handle(jobs: Jobs) -> None:
        calls.append(len(jobs))
        raise TransportUnavailable("as a database that went away inside the handler")

    with running(dsn, batch_app(handle)):
        wait_until(lambda: engine.value("select count(*) from queue_worker_data.trouble where failures = 0") == 4)
    assert calls == [4]
    assert charged(engine) == []


def test_a_time_limit_is_each_messages_own_and_a_late_decision_is_refused(dsn: str, engine: Engine) -> None:
    door = Door()
    engine.rows("select queue_worker.send('work', '{\"n\": 1}', timeout_seconds => 1)")
    engine.rows("select queue_worker.send('work', '{\"n\": 2}')")

    def handle(jobs: Jobs) -> None:
        door.wait()
        for job in jobs:
            job.ack()

    with running(dsn, batch_app(handle, timeout=600, concurrency=2)):
        door.reached()
        wait_until(lambda: charged(engine) == [(1, "timeout")])
        door.open()
        wait_until(lambda: engine.count("archive") == 1)
    assert engine.rows("select msg_id from pgmq.a_work") == [(2,)]
    assert engine.places(1) == ["queue"]


def test_an_async_batch_is_stopped_when_none_of_its_messages_is_left(dsn: str, engine: Engine) -> None:
    ended: list[str] = []
    engine.fill(3)

    async def handle(jobs: Jobs) -> None:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            ended.append(threading.current_thread().name)
            raise

    with running(dsn, batch_app(handle, timeout=0.3)):
        wait_until(lambda: ended)
        wait_until(lambda: len(charged(engine)) == 3)
    assert ended == ["async"]


@pytest.mark.conformance(without="rest", hosted=True)
def test_a_transaction_settles_its_own_message(dsn: str, effects: Engine) -> None:
    effects.fill(3)

    def handle(jobs: Jobs) -> None:
        if len(jobs) == 1:
            raise Reject("nor what is left")
        with jobs[1].transaction() as transaction:
            transaction.execute("insert into effects values (%s)", [jobs[1].msg_id])
        jobs[0].reject("not this one")
        raise ValueError("after the commit")

    with events.capture("message.late_error"), running(dsn, batch_app(handle)):
        wait_until(lambda: effects.count("archive") == 1 and effects.count("dead") == 2)
    assert effects.rows("select key from effects") == [(2,)]


def test_decisions_are_for_batch_handlers_and_shapes_are_checked(dsn: str, engine: Engine) -> None:
    app = App(builtins=False)

    def single(job: Job[dict[str, Any]]) -> None:
        with pytest.raises(UsageError, match="batch handlers"):
            job.ack()

    app.processor("work", cycle=0.1)(single)
    engine.send({})
    with running(dsn, app):
        wait_until(lambda: engine.count("archive") == 1)
    with pytest.raises(ConfigError, match="batch=True the handler takes a list"):
        app.processor("other", batch=True)(single)

    def many(jobs: list[Job[Numbered]]) -> None: ...

    with pytest.raises(ConfigError, match="say batch=True"):
        app.processor("other")(many)
    app.processor("other", batch=True)(many)
    assert app.processors["other"].model is Numbered
    assert not inspect.iscoroutinefunction(app.processors["other"].handler)
