"""`async def` handlers: one loop thread for all, stopped by time limit and cancel, judged like plain ones."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Any

import pytest
from pydantic import BaseModel

from queue_worker import App, Job, Reject, Retry, events
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.worker.kit import app_of, turns

pytestmark = pytest.mark.conformance(hosted=True)


class Numbered(BaseModel):
    n: int


class Gate:
    """Coroutines wait at it; tells how many stand there, and how they were ended."""

    def __init__(self) -> None:
        self.open = False
        self.inside = 0
        self.most = 0
        self.cancelled: list[int] = []
        self.threads: set[str] = set()

    async def wait(self, msg_id: int = 0) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.threads.add(threading.current_thread().name)
        try:
            while not self.open:
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.cancelled.append(msg_id)
            raise
        finally:
            self.inside -= 1


def test_handlers_of_all_queues_run_together_on_one_thread_up_to_their_concurrency(dsn: str, engine: Engine) -> None:
    gate = Gate()
    engine.rows("select queue_worker.create_queue('other')")
    engine.fill(30)
    engine.rows("insert into pgmq.q_other (vt, message) select now(), '{}' from generate_series(1, 3)")

    async def handle(job: Job[dict[str, Any]]) -> None:
        await gate.wait()

    with running(dsn, app_of(handle, "work", "other", concurrency=8, batch_size=30)) as worker:
        wait_until(lambda: gate.inside == 11)
        turns(worker, "work")
        assert gate.most == 11
        gate.open = True
        wait_until(lambda: engine.count("archive") == 30)
    assert gate.threads == {"async"}
    assert engine.value("select count(*) from pgmq.a_other") == 3


def test_the_loop_thread_exists_only_while_it_is_used(dsn: str, engine: Engine) -> None:
    def names() -> set[str]:
        return {thread.name for thread in threading.enumerate()}

    engine.send({})
    with running(dsn, app_of(lambda job: None)):
        wait_until(lambda: engine.count("archive") == 1)
        assert "async" not in names()

    async def handle(job: Job[dict[str, Any]]) -> None:
        await asyncio.to_thread(time.monotonic)

    engine.send({})
    with running(dsn, app_of(handle)):
        wait_until(lambda: engine.count("archive") == 2)
        assert "async" in names()
    wait_until(lambda: not [name for name in names() if name.startswith("async")])


def test_payload_and_errors_are_those_of_plain_handlers(dsn: str, engine: Engine) -> None:
    app = App(builtins=False)
    bad = engine.send({"n": "many"})
    for n in range(4):
        engine.send({"n": n})

    @app.processor("work", cycle=0.1, retry=(600,))
    async def handle(job: Job[Numbered]) -> None:
        await asyncio.sleep(0)
        if job.payload.n == 1:
            raise Retry("not yet", delay=900)
        if job.payload.n == 2:
            raise Reject("never")
        if job.payload.n == 3:
            raise SystemExit(3)

    with running(dsn, app):
        wait_until(lambda: engine.value("select count(*) from queue_worker.failures") == 4)
        wait_until(lambda: engine.count("archive") == 1)
    dead = engine.rows("select msg_id, reason from queue_worker.dead_letters order by msg_id")
    assert dead == [(bad, "invalid"), (bad + 3, "rejected")]
    kept = engine.rows("select msg_id, error from queue_worker.failures where kind = 'failed' order by msg_id")
    assert [row[0] for row in kept] == [bad + 2, bad + 4]
    assert kept[0][1] == "not yet"
    assert kept[1][1].startswith("SystemExit: 3")


def test_a_time_limit_stops_the_task_and_frees_its_slot(dsn: str, engine: Engine) -> None:
    gate = Gate()
    engine.rows("select queue_worker.send('work', '{\"wait\": 1}', timeout_seconds => 1)")

    async def handle(job: Job[dict[str, Any]]) -> None:
        if job.payload:
            await gate.wait(job.msg_id)

    with running(dsn, app_of(handle, concurrency=1, retry=(600,), timeout=600)) as worker:
        wait_until(lambda: gate.cancelled == [1])
        engine.send({})
        wait_until(lambda: engine.count("archive") == 1)
        (loop,) = worker.service.workers
        wait_until(lambda: loop.executor.free == 1)
    (row,) = engine.rows("select kind, error from queue_worker.failures")
    assert row == ("timeout", "timeout: the handler ran longer than 1 s")


def test_a_handler_that_swallows_the_cancel_is_stuck(dsn: str, engine: Engine) -> None:
    gate = Gate()
    engine.send({})

    async def handle(job: Job[dict[str, Any]]) -> None:
        while not gate.open:
            with contextlib.suppress(asyncio.CancelledError):
                await gate.wait()

    app = app_of(handle, concurrency=1, timeout=0.3, max_attempts=1)
    with events.capture("worker.stuck") as stuck, running(dsn, app) as worker:
        wait_until(lambda: worker.code is not None or stuck, 20)
        gate.open = True
        wait_until(lambda: worker.code is not None, 40)
    assert worker.code == 75
    assert engine.count("dead") == 1


@pytest.mark.conformance(without="rest", hosted=True)
def test_a_blocking_call_on_the_loop_is_slow_but_right(dsn: str, effects: Engine) -> None:
    """Transactions of interleaved tasks do not mix, and calls inside one belong to it."""
    effects.fill(6)

    async def handle(job: Job[dict[str, Any]]) -> None:
        with job.transaction() as transaction:
            transaction.execute("insert into effects values (%s)", [job.msg_id])
            await asyncio.sleep(0.01)
            job.send("work", {"from": job.msg_id}, delay_seconds=3600)
            if job.msg_id % 2:
                raise Reject("odd")

    with running(dsn, app_of(handle, concurrency=4)):
        wait_until(lambda: effects.count("archive") == 3 and effects.count("dead") == 3)
    assert effects.rows("select key from effects order by key") == [(2,), (4,), (6,)]
    sent = effects.rows("select message -> 'from' from pgmq.q_work order by 1")
    assert sent == [(2,), (4,), (6,)]


@pytest.mark.conformance(without="rest", hosted=True)
def test_a_transaction_in_a_thread_of_its_own_leaves_the_loop_free(dsn: str, effects: Engine) -> None:
    effects.fill(4)

    def save(job: Job[dict[str, Any]]) -> None:
        with job.transaction() as transaction:
            transaction.execute("insert into effects values (%s)", [job.msg_id])

    async def handle(job: Job[dict[str, Any]]) -> None:
        rows = await asyncio.to_thread(job.call, "queue_worker.list_queues")
        assert rows
        await asyncio.to_thread(save, job)

    with running(dsn, app_of(handle, concurrency=4)):
        wait_until(lambda: effects.count("archive") == 4)
    assert effects.rows("select key from effects order by key") == [(1,), (2,), (3,), (4,)]


@pytest.mark.parametrize("swallow", [False, True])
def test_what_still_runs_after_the_grace_is_stopped_uncharged(dsn: str, engine: Engine, swallow: bool) -> None:
    gate = Gate()
    msg_id = engine.send({})

    async def handle(job: Job[dict[str, Any]]) -> None:
        try:
            await gate.wait(job.msg_id)
        except asyncio.CancelledError:
            if not swallow:
                raise

    with running(dsn, app_of(handle), grace_seconds=0.2) as worker:
        wait_until(lambda: gate.inside)
    assert worker.code == 70
    assert gate.cancelled == [msg_id]
    assert engine.places(msg_id) == ["queue"]
    assert engine.trouble(msg_id)[:2] == (0, 0)
