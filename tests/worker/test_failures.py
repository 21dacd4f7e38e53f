"""What an error means, end to end: policies by exception, on_error, a provider that is away, unfit payloads."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from queue_worker import App, Job, events
from queue_worker.config import load_settings
from queue_worker.errors import Panic, Reject, Retry, TimeLimit, Unavailable
from queue_worker.service import processors_of
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.worker.kit import Door, app_of
from tests.worker.test_attempts import delays, run_to_the_end

pytestmark = pytest.mark.conformance


class Declined(Exception):
    """Never retried here."""


class Answer:
    def __init__(self, status: int, **headers: str) -> None:
        self.status_code = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Refused(Exception):
    """Looks like the error of an HTTP client."""

    def __init__(self, response: Answer) -> None:
        super().__init__(f"status {response.status_code}")
        self.response = response


def dead(engine: Engine) -> list[Any]:
    return engine.rows("select reason, attempts, error from queue_worker.dead_letters order by dead_id")


# ------------------------------------------------------------------------------------------ policies


def test_each_exception_class_has_its_own_retries(dsn: str, engine: Engine) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        if job.attempt < 3:
            raise TimeoutError(f"attempt {job.attempt}")
        raise Declined("card")

    engine.send({})
    run_to_the_end(dsn, engine, handle, retry_for={TimeoutError: [41, 55], Declined: None})
    assert delays(engine) == [41, 55]
    ((reason, attempts, error),) = dead(engine)
    assert (reason, attempts) == ("rejected", 3)
    assert error.startswith("Declined: card")


def test_a_callable_gives_the_delay_and_a_broken_one_loses_nothing(dsn: str, engine: Engine) -> None:
    def decide(attempt: int, error: BaseException) -> float:
        return 44 / (2 - attempt)

    def handle(job: Job[dict[str, Any]]) -> None:
        if job.attempt < 3:
            raise ValueError("odd")

    engine.send({})
    run_to_the_end(dsn, engine, handle, retry=decide)
    assert delays(engine) == [44, 120]
    assert engine.places(1) == ["archive"]
    (_, second) = [row[0] for row in engine.rows("select error from queue_worker.failures order by failure_id")]
    assert "its retry callable failed, so another policy was used: ZeroDivisionError" in second


# ------------------------------------------------------------------------------------------ the provider is away


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (Refused(Answer(503, Retry_After="40")), 40),
        (Refused(Answer(429, Retry_After="50")), 50),
        (Unavailable("closed for lunch", delay=60), 60),
        (Unavailable("closed for lunch"), 35),
    ],
    ids=["503", "429", "delay", "breaker"],
)
def test_a_provider_that_is_away_costs_no_attempt(dsn: str, engine: Engine, error: Exception, seconds: int) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        raise error

    engine.send({})
    with (
        events.capture("message.released") as released,
        running(dsn, app_of(handle, max_attempts=1, breaker_seconds=35)),
    ):
        wait_until(lambda: released, 20)
    assert engine.rows("select count(*) from queue_worker.failures") == [(0,)]
    left = engine.value("select extract(epoch from vt - now()) from pgmq.q_QUEUE")
    assert seconds - 30 < left <= seconds
    assert engine.places(1) == ["queue"]


def test_a_503_without_retry_after_is_a_failure(dsn: str, engine: Engine) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        raise Refused(Answer(503))

    engine.send({})
    run_to_the_end(dsn, engine, handle, max_attempts=1)
    assert dead(engine)[0][:2] == ("attempts", 1)


# ------------------------------------------------------------------------------------------ on_error


class Order(BaseModel):
    amount: int


def test_on_error_sees_failures_and_invalid_payloads_and_answers(dsn: str, engine: Engine) -> None:
    app, told = App(builtins=False), []

    @app.processor("work", cycle=0.1)
    def handle(job: Job[Order]) -> None:
        raise ValueError("odd")

    @app.on_error
    def watch(job: Job[Any], error: Exception) -> Retry | Reject | None:
        told.append((job.msg_id, job.payload, type(error).__name__))
        if job.payload is None:
            # Such a job can do what any other can.
            job.send("hospital", {"of": job.msg_id})
            return None
        return Reject("known bug")

    engine.rows("select queue_worker.create_queue('hospital')")
    engine.send({"amount": 5})
    engine.send({"amount": "five"})
    with running(dsn, app):
        wait_until(lambda: engine.count("dead") == 2, 20)
    assert sorted(told, key=lambda one: one[0]) == [(1, Order(amount=5), "ValueError"), (2, None, "InvalidPayload")]
    found = {row[0]: row[1:] for row in engine.rows("select msg_id, reason, error from queue_worker.dead_letters")}
    assert found[1][0] == "rejected"
    assert found[1][1].startswith("ValueError: odd\non_error: known bug\n  at ")
    assert found[2][0] == "invalid"
    assert engine.rows("select message from pgmq.q_hospital") == [({"of": 2},)]


@pytest.mark.parametrize("raised", [SystemExit(3), MemoryError("big"), KeyboardInterrupt()], ids=repr)
def test_a_panic_is_told_as_one_and_the_worker_lives(dsn: str, engine: Engine, raised: BaseException) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        if job.payload:
            raise raised

    app, told = app_of(handle, max_attempts=1), []
    app.on_error(lambda job, error: told.append((job.payload, error)))
    engine.send({"panic": True})
    engine.send({})
    with running(dsn, app):
        wait_until(lambda: engine.count("dead") == 1 and engine.count("archive") == 1, 20)
    ((payload, panic),) = told
    assert isinstance(panic, Panic)
    assert (payload, panic.__cause__) == ({"panic": True}, raised)
    assert dead(engine)[0][2].startswith(type(raised).__name__)


def test_a_time_limit_is_told_and_answered(dsn: str, engine: Engine) -> None:
    door, told = Door(), []
    app = app_of(lambda job: door.wait(), timeout=0.3, concurrency=2)

    @app.on_error
    def watch(job: Job[Any], error: Exception) -> Reject:
        told.append((job.payload, error, threading.current_thread().name))
        return Reject("it hangs")

    engine.send({"n": 1})
    with running(dsn, app):
        wait_until(lambda: engine.count("dead") == 1, 20)
        door.open()
    ((payload, error, thread),) = told
    assert payload == {"n": 1}
    assert isinstance(error, TimeLimit)
    # The supervising thread has more to watch than one callback.
    assert thread == "on_error"
    assert dead(engine) == [("rejected", 1, "timeout: the handler ran longer than 0.3 s\non_error: it hangs")]


def test_a_callback_that_fails_changes_nothing(dsn: str, engine: Engine) -> None:
    app = app_of(lambda job: {}["odd"], max_attempts=1)
    app.on_error(lambda job, error: 1 / 0)
    engine.send({})
    with events.capture("on_error.failed") as complaints, running(dsn, app):
        wait_until(lambda: engine.count("dead") == 1, 20)
    assert dead(engine)[0][:2] == ("attempts", 1)
    assert complaints[0][1]["error"].startswith("ZeroDivisionError")


def test_the_built_in_processors_have_the_callbacks_of_the_app_too() -> None:
    app = App()
    settings = load_settings({"database_url": "postgresql://nowhere/x", "state_dir": Path.cwd()})
    for processor in processors_of(settings, app):
        assert processor.error_callbacks is app.error_callbacks
        if processor.close is not None:
            processor.close()


# ------------------------------------------------------------------------------------------ payloads


def test_an_unknown_version_is_a_dead_letter_and_no_unknown_field_is_let_in(dsn: str, engine: Engine) -> None:
    app, seen = App(builtins=False), []

    @app.processor("work", cycle=0.1, version_field="v", versions={1, 2}, unknown_fields="forbid")
    def handle(job: Job[Order]) -> None:
        seen.append(job.payload)

    for payload in ({"v": 2, "amount": 5}, {"v": 3, "amount": 5}, {"v": 1, "amount": 5, "price": 6}):
        engine.send(payload)
    with running(dsn, app):
        wait_until(lambda: engine.count("dead") == 2 and engine.count("archive") == 1, 20)
    assert seen == [Order(amount=5)]
    assert sorted(dead(engine)) == [
        ("invalid", 1, "price: Extra inputs are not permitted"),
        ("unsupported_version", 1, "version 3 in field 'v'; this processor knows 1, 2"),
    ]
