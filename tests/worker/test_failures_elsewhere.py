"""What an error means where the handler is a coroutine, gets a batch, or runs in a child process: the same."""

from __future__ import annotations

from typing import Any

import pytest

from queue_worker import App, Job, events
from queue_worker.errors import Panic, UsageError
from queue_worker.testing import run
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.worker import failing

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "async": (failing.handle_async, {}),
    "batch": (failing.handle_batch, {"batch": True}),
    "process": (failing.handle, {"isolation": "process"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_policies_versions_pauses_and_on_error_are_those_of_a_thread(dsn: str, engine: Engine, kind: str) -> None:
    handler, options = KINDS[kind]
    app, told = App(builtins=False), {}
    app.processor("work", **failing.OPTIONS, **options)(handler)

    @app.on_error
    def watch(job: Job[Any], error: Exception) -> None:
        told[job.msg_id] = (job.payload and job.payload.do, error)

    payloads = ({"do": "expired"}, {"do": "x", "v": 2}, {"do": 5}, {"do": "refused"}, {"do": "unavailable"})
    with events.capture("message.released") as released, running(dsn, app):
        for payload in payloads[:3]:
            engine.send(payload)
        wait_until(lambda: engine.count("dead") == 3, 60)
        for number, payload in enumerate(payloads[3:], start=1):
            engine.send(payload)
            wait_until(lambda number=number: len(released) == number, 60)
            wait_until(
                lambda: engine.value("select count(*) from queue_worker_data.queues where broken_at is not null")
            )
            engine.rows("select queue_worker.resume('work')")
    dead = {row[0]: row[1:] for row in engine.rows("select msg_id, reason, error from queue_worker.dead_letters")}
    assert {msg_id: row[0] for msg_id, row in dead.items()} == {1: "rejected", 2: "unsupported_version", 3: "invalid"}
    assert dead[1][1].startswith("Expired: card 42")
    left = {row[0]: row[1] for row in engine.rows("select msg_id, extract(epoch from vt - now()) from pgmq.q_QUEUE")}
    assert 2000 < left[4] <= 3000
    assert 1000 < left[5] <= 2000
    assert engine.value("select count(*) from queue_worker.failures where kind <> 'dead'") == 0
    assert {msg_id: payload for msg_id, (payload, _) in told.items()} == {
        1: "expired", 2: None, 3: None, 4: "refused", 5: "unavailable",
    }  # fmt: skip


@pytest.mark.parametrize("do", ["exit", "die"])
def test_an_exit_and_the_death_of_a_child_are_panics(dsn: str, engine: Engine, do: str) -> None:
    app, told = App(builtins=False), []
    app.processor("work", isolation="process", **failing.OPTIONS)(failing.handle)
    app.on_error(lambda job, error: told.append((job.payload.do, error)))
    engine.send({"do": do})
    with running(dsn, app):
        wait_until(lambda: engine.count("dead") == 1, 60)
    ((payload, error),) = told
    assert payload == do
    assert isinstance(error, Panic)


def test_the_testing_helper_knows_coroutines_and_progress_and_no_batches() -> None:
    app = App(builtins=False)

    @app.processor("one", retry=[7])
    async def one(job: Job[dict[str, Any]]) -> int:
        job.progress(3, 10, "rows")
        if job.payload:
            raise ValueError("odd")
        return 5

    @app.processor("many", batch=True)
    def many(jobs: list[Job[dict[str, Any]]]) -> None: ...

    found = run(app.processors["one"], {})
    assert found.result == 5
    assert found.progress == (3, 10, "rows")
    assert run(app.processors["one"], {"a": 1}).outcome.delay == 7  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="takes handlers of one job"):
        run(app.processors["many"], {})
