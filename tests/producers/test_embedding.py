"""`with app.running():` inside any program: ready at the start, gone without a trace at the end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest
from loguru import logger

from queue_worker import App, Job
from queue_worker.errors import ConfigError, QueueWorkerError, TransportUnavailable, UsageError
from tests.helpers import wait_until
from tests.sql.engine import Engine


def make_app(**options: Any) -> tuple[App, Any, list[int]]:
    app = App(builtins=False)
    done: list[int] = []

    @app.processor("work", cycle=0.1, **options)
    def handle(job: Job[dict[str, int]]) -> None:
        done.append(job.payload["n"])

    return app, handle, done


def test_a_script_sends_and_processes_in_one_process(engine: Engine) -> None:
    app, handle, done = make_app()
    with app.running() as worker:
        assert worker.alive
        handle.send({"n": 1})
        wait_until(lambda: done == [1])
    assert not worker.alive
    assert engine.places(1) == ["archive"]


def test_its_lines_name_queue_and_message_in_the_log_of_the_program(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("queue_worker.log._State.handler", 0)  # as in a program that has no log of ours
    lines: list[str] = []
    own = logger.add(lines.append, format="{message}")
    app, handle, done = make_app()
    try:
        with app.running():
            handle.send({"n": 1})
            wait_until(lambda: done == [1])
    finally:
        logger.remove(own)
    assert any(line.startswith("started queue=work msg_id=1 attempt=1") for line in lines)


def test_it_is_ready_when_the_block_begins_even_without_the_queue(db: psycopg.Connection[Any]) -> None:
    app, handle, done = make_app()
    with app.running():
        handle.send({"n": 1})
        wait_until(lambda: done == [1])


def test_settings_of_the_call_count_also_for_its_producers(
    engine: Engine, dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://postgres@127.0.0.1:1/none")
    app, handle, done = make_app()
    with app.running(database_url=dsn, concurrency=1, state_dir=tmp_path / "state"):
        handle.send({"n": 1})
        app.queue("work").send({"n": 2})
        wait_until(lambda: sorted(done) == [1, 2])
        assert list((tmp_path / "state" / "run").glob("*.json"))
    assert not list((tmp_path / "state" / "run").glob("*.json"))


def test_several_apps_one_after_the_other_and_the_same_app_again(engine: Engine) -> None:
    for app, handle, done in (make_app(), make_app()):
        for n in (1, 2):
            with app.running():
                handle.send({"n": n})
                wait_until(lambda done=done, n=n: done[-1:] == [n])
    assert engine.count("archive") == 4


def test_the_process_stays_as_the_program_has_it(engine: Engine) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
    frozen: list[int] = []
    app, handle, done = make_app()
    gc.freeze()
    try:
        kept = gc.get_freeze_count()
        with app.running():
            frozen.append(gc.get_freeze_count())
            assert {number: signal.getsignal(number) for number in before} == before
            handle.send({"n": 1})
            wait_until(lambda: done)
        # Neither frozen by us nor thawed; a frozen object may go by itself.
        assert kept - 1000 < frozen[0] <= kept
        assert kept - 1000 < gc.get_freeze_count() <= kept
    finally:
        gc.unfreeze()


def test_pm2_is_not_told_that_the_host_program_is_ready(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    monkeypatch.setenv("NODE_CHANNEL_FD", str(theirs))
    app, _, _ = make_app()
    with app.running(), pytest.raises(BlockingIOError):
        os.read(ours, 10)
    os.close(ours)
    os.close(theirs)


def test_a_running_handler_may_finish_and_nothing_new_begins(engine: Engine) -> None:
    inside, leave = threading.Event(), threading.Event()
    app = App(builtins=False)
    finished = []

    @app.processor("work", cycle=0.1, concurrency=1)
    def handle(job: Job[dict[str, Any]]) -> None:
        inside.set()
        assert leave.wait(30)
        finished.append(job.msg_id)

    handle.send_batch([{}, {}])
    with app.running() as worker:
        assert inside.wait(30)
        stopping = threading.Thread(target=worker.stop)
        stopping.start()
        wait_until(lambda: engine.value("select vt <= clock_timestamp() from pgmq.q_QUEUE where msg_id = 2"))
        leave.set()
        stopping.join()
    assert finished == [1]
    assert [engine.places(1), engine.places(2)] == [["archive"], ["queue"]]


def test_errors_of_the_start_are_raised_by_the_block(
    engine: Engine, empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, _, _ = make_app()
    with pytest.raises(ConfigError, match="migrate"), app.running(database_url=empty_dsn):
        pytest.fail("began")
    with pytest.raises(ConfigError, match="no processor for queue 'nope'"), app.running(only=("nope",)):
        pytest.fail("began")
    with pytest.raises(ConfigError, match="unknown setting 'databaseurl'"), app.running(databaseurl="x"):
        pytest.fail("began")
    monkeypatch.delenv("DATABASE_URL")
    with pytest.raises(ConfigError, match="no database is set"), app.running():
        pytest.fail("began")


def test_a_database_that_does_not_come_is_given_up_with_the_reason(engine: Engine) -> None:
    app, _, _ = make_app()
    away = "postgresql://postgres@127.0.0.1:1/none"
    with (
        pytest.raises(TransportUnavailable, match=r"the worker was not ready within 1 s: .*127\.0\.0\.1"),
        app.running(database_url=away, ready_timeout="1s"),
    ):
        pytest.fail("began")


def test_waiting_ends_with_a_worker_that_ends_by_itself(engine: Engine) -> None:
    app, handle, done = make_app()
    with app.running() as worker:
        assert not worker.wait("0s")
    handle.send({"n": 1})
    with app.running(burst=True) as worker:
        assert worker.wait("1 minute")
    assert done == [1]


def test_an_exception_of_the_block_stops_the_worker_and_goes_on(engine: Engine) -> None:
    app, _, _ = make_app()
    with pytest.raises(ZeroDivisionError), app.running() as worker:
        1 / 0  # noqa: B018
    assert not worker.alive


def test_a_crash_is_raised_when_the_block_ends(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    app, _, _ = make_app()
    worker = app.running().__enter__()
    assert worker._service is not None
    (loop,) = worker._service.workers
    monkeypatch.setattr(loop, "cycle", lambda: 1 / 0)
    loop.wake()
    wait_until(lambda: not worker.alive)
    with pytest.raises(QueueWorkerError, match="the worker crashed"):
        worker.__exit__(None, None, None)


def test_a_context_serves_once(engine: Engine) -> None:
    app, _, _ = make_app()
    context = app.running()
    with context, pytest.raises(UsageError, match=r"call app\.running"), context:
        pass


def test_a_coroutine_starts_and_stops_it_without_blocking_its_loop(engine: Engine) -> None:
    app, handle, done = make_app()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async def main() -> None:
        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)
        before = ticks
        async with app.running():
            assert ticks > before + 10
            await handle.asend({"n": 1})
            while not done:
                await asyncio.sleep(0.01)
            before = ticks
        assert ticks > before + 10
        ticking.cancel()

    asyncio.run(main())
    assert engine.places(1) == ["archive"]
