"""Cancel: what runs is told, stopped where it can be, and nobody is charged; with NOTIFY and without."""

from __future__ import annotations

import asyncio
import fcntl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from queue_worker import App, Job, events, lease
from queue_worker.listening import Listening
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.worker import isolated
from tests.worker.kit import Door, app_of, turns
from tests.worker.processes import NOTES

pytestmark = pytest.mark.conformance(hosted=True)

CANCEL = """
do $$ begin
    delete from pgmq.q_work where msg_id = {};
    perform pg_notify('queue_worker', 'cancel work {}');
end $$
"""


def cancel(engine: Engine, msg_id: int) -> None:
    """What SQL `cancel` does to a running message."""
    engine.rows(CANCEL.format(int(msg_id), int(msg_id)))


@pytest.fixture(params=[True, False], ids=["notify", "polling"])
def notify(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[IO[str]]:
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def untouched(engine: Engine) -> None:
    """Nobody was charged, nothing came back."""
    assert engine.value("select count(*) from queue_worker.failures") == 0
    assert (engine.count("queue"), engine.count("archive"), engine.count("dead")) == (0, 0, 0)
    assert engine.value("select count(*) from queue_worker_data.trouble") == 0


def test_a_cancel_that_came_before_the_worker_began_to_hear_is_seen(
    dsn: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    door, jobs, hears = Door(), [], threading.Event()
    listen = Listening.run
    monkeypatch.setattr(Listening, "run", lambda self: hears.wait(20) and listen(self))
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 2.0)

    def handle(job: Job[dict[str, Any]]) -> None:
        jobs.append(job)
        door.wait()

    msg_id = engine.send()
    with running(dsn, app_of(handle, lease=600)) as worker:
        wait_until(lambda: jobs)
        keeper = worker.service._supervisor.keeper
        before = keeper._looked_at
        # The tick after: that look is over, and the next one two seconds away.
        wait_until(lambda: keeper.last_tick > keeper._looked_at != before)
        cancel(engine, msg_id)
        hears.set()
        wait_until(lambda: jobs[0].cancelled)
        door.open()
    untouched(engine)


def test_a_plain_handler_sees_it(dsn: str, engine: Engine, notify: bool) -> None:
    door, jobs = Door(), []

    def handle(job: Job[dict[str, Any]]) -> None:
        jobs.append(job)
        door.wait()

    msg_id = engine.send({})
    with (
        events.capture("message.cancelled") as cancelled,
        events.capture("message.lease_lost") as lost,
        events.capture("message.done") as done,
        running(dsn, app_of(handle, lease=600), notify=notify) as worker,
    ):
        door.reached()
        assert not jobs[0].cancelled
        cancel(engine, msg_id)
        wait_until(lambda: jobs[0].cancelled)
        door.open()
        (loop,) = worker.service.workers
        wait_until(lambda: not loop.held)
        turns(worker, "work")
    assert cancelled == [("message.cancelled", {"queue": "work", "msg_id": msg_id})]
    assert (lost, done) == ([], [])
    untouched(engine)


def test_an_async_handler_is_stopped_and_its_neighbours_are_not(dsn: str, engine: Engine, notify: bool) -> None:
    open_door, running_now, stopped = [False], set(), []

    async def handle(job: Job[dict[str, Any]]) -> None:
        running_now.add(job.msg_id)
        try:
            while not open_door[0]:
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            stopped.append(job.msg_id)
            raise

    engine.fill(3)
    with running(dsn, app_of(handle, lease=600), notify=notify):
        wait_until(lambda: running_now == {1, 2, 3})
        cancel(engine, 2)
        wait_until(lambda: stopped == [2])
        open_door[0] = True
        wait_until(lambda: engine.count("archive") == 2)
    assert stopped == [2]
    engine.rows("delete from pgmq.a_work")
    untouched(engine)


def test_a_child_process_is_killed(dsn: str, effects: Engine, notify: bool, lock: IO[str]) -> None:
    effects.rows("drop table effects")
    effects.rows(NOTES)
    msg_id = effects.send({"do": "wait", "path": lock.name})
    app = App(builtins=False)
    app.processor("work", isolation="process", cycle=0.1, lease=600)(isolated.handle)
    with running(dsn, app, notify=notify) as worker:
        (pid,) = wait_until(lambda: effects.rows("select process from starts"), 30)[0]
        cancel(effects, msg_id)
        wait_until(lambda: not Path(f"/proc/{pid}").exists())
        (loop,) = worker.service.workers
        wait_until(lambda: not loop.held)
    untouched(effects)


def test_a_batch_goes_on_with_the_others(dsn: str, engine: Engine) -> None:
    door, seen = Door(), []

    def handle(jobs: list[Job[dict[str, Any]]]) -> None:
        door.wait()
        seen.append([job.cancelled for job in jobs])

    app = App(builtins=False)
    app.processor("work", batch=True, cycle=0.1, lease=600)(handle)
    engine.fill(3)
    with events.capture("message.cancelled") as cancelled, running(dsn, app):
        door.reached()
        cancel(engine, 1)
        wait_until(lambda: cancelled)
        door.open()
        wait_until(lambda: engine.count("archive") == 2)
    assert seen == [[True, False, False]]
    engine.rows("delete from pgmq.a_work")
    untouched(engine)


@pytest.mark.conformance(without="rest", hosted=True)
def test_a_transaction_that_has_begun_cannot_be_cancelled_any_more(dsn: str, effects: Engine) -> None:
    door = Door()

    def handle(job: Job[dict[str, Any]]) -> None:
        with job.transaction() as transaction:
            transaction.execute("insert into effects values (%s)", [job.msg_id])
            door.wait()

    msg_id = effects.send({})
    with events.capture("message.cancelled") as cancelled, running(dsn, app_of(handle), notify=False) as worker:
        door.reached()
        # It would wait for the row; the keeper looks meanwhile, and finds it held.
        ticks(worker, 3)
        door.open()
        wait_until(lambda: effects.count("archive") == 1)
    assert cancelled == []
    assert effects.rows("select key from effects") == [(msg_id,)]


def test_a_notification_alone_stops_nothing(dsn: str, engine: Engine) -> None:
    """Everybody may NOTIFY; the queue is asked whether it is true."""
    door, jobs = Door(), []

    def handle(job: Job[dict[str, Any]]) -> None:
        jobs.append(job)
        door.wait()

    msg_id = engine.send({})
    with running(dsn, app_of(handle, lease=600)) as worker:
        door.reached()
        for text in (f"cancel work {msg_id}", "cancel work 99", "cancel", f"cancel work {10**30}", "cancel nowhere 1"):
            engine.rows("select pg_notify('queue_worker', %s)", text)
        ticks(worker, 3)
        assert not jobs[0].cancelled
        door.open()
        wait_until(lambda: engine.count("archive") == 1)


def test_an_idle_worker_asks_for_nothing(dsn: str, engine: Engine) -> None:
    engine.rows("create table looks (at timestamptz default now())")
    engine.rows(
        "create or replace function queue_worker.lost("
        "queue text, ids bigint[], read_cts int[], enqueued_ats timestamptz[])"
        " returns table (msg_id bigint, gone boolean) language sql as $$ insert into public.looks default values;"
        " select null::bigint, null::boolean where false $$"
    )
    door = Door()
    with running(dsn, app_of(lambda job: door.wait(), lease=600), notify=False) as worker:
        ticks(worker, 4)
        assert engine.value("select count(*) from looks") == 0
        engine.send({})
        door.reached()
        wait_until(lambda: engine.value("select count(*) from looks") > 0)
        door.open()


def ticks(worker: Any, count: int) -> None:
    """Wait until the lease keeper has looked around `count` more times."""
    wait_until(lambda: worker.service._supervisor is not None)
    keeper = worker.service._supervisor.keeper
    for _ in range(count):
        before = keeper.last_tick
        wait_until(lambda before=before: keeper.last_tick != before)


def test_what_the_listener_hears_is_told_apart() -> None:
    heard: list[Any] = []

    said = ["work", "cancel work 7", "cancel work 7 8", "cancel  7", "cancel work -7", "gone"]

    class Connection:
        def wait(self, seconds: float) -> list[str]:
            if not said:
                listening.stop()
                return []
            return [said.pop(0)]

        def abort(self) -> None: ...

        def close(self) -> None: ...

    class Loop:
        queue = "work"

        def wake(self) -> None:
            heard.append("wake")

        def listen(self, listening: bool) -> None: ...

    listening = Listening(Connection(), [Loop()], lambda queue, msg_id: heard.append((queue, msg_id)))
    listening.run()
    assert heard == ["wake", ("work", 7)]
