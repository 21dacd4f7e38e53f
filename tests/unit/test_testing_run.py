"""`queue_worker.testing.run`: a handler without a database is treated as the worker would treat it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from pydantic import BaseModel

from queue_worker import App, Job, LeaseLost, Reject, Retry, Unavailable
from queue_worker.errors import InvalidPayload, UsageError
from queue_worker.testing import Ack, Called, DeadLetter, Executed, Release, Sent, run
from queue_worker.testing import Retry as RetryOutcome


class Order(BaseModel):
    amount: int


def app_of(handler: Any, **options: Any) -> App:
    app = App(builtins=False)
    app.processor("orders", **options)(handler)
    return app


def run_one(handler: Any, payload: Any = None, app: App | None = None, **arguments: Any) -> Any:
    options = arguments.pop("options", {})
    app = app or app_of(handler, **options)
    return run(app.processors["orders"], {} if payload is None else payload, **arguments)


def raising(error: BaseException) -> Any:
    def handle(job: Job[dict[str, Any]]) -> None:
        raise error

    return handle


def test_the_handler_runs_here_with_all_that_a_job_has() -> None:
    seen: dict[str, Any] = {}

    def handle(job: Job[Order]) -> str:
        seen.update(
            payload=job.payload, queue=job.queue, attempt=job.attempt, key=job.key, headers=job.headers,
            cancelled=job.cancelled, thread=threading.current_thread(), most=job.max_attempts,
        )  # fmt: skip
        job.annotate(order=7)
        return "kept"

    found = run_one(handle, Order(amount=5), headers={"h": 1}, attempt=3, key="order-7", options={"max_attempts": 4})
    assert found.outcome == Ack()
    assert (found.result, found.error, found.note) == ("kept", None, {"order": 7})
    assert seen == {
        "payload": Order(amount=5),
        "queue": "orders",
        "attempt": 3,
        "key": "order-7",
        "headers": {"h": 1, "key": "order-7"},
        "cancelled": False,
        "thread": threading.current_thread(),
        "most": 4,
    }


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Retry("busy", delay=5), RetryOutcome(5, "busy")),
        (Reject("no"), DeadLetter("rejected", "no")),
        (Unavailable("down", delay=30), Release(30, 30, "down")),
        (LeaseLost("gone"), Release(5)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_is_raised_is_judged(error: Exception, outcome: Any) -> None:
    found = run_one(raising(error))
    assert found.outcome == outcome
    assert found.error is error


def test_the_policy_is_that_of_the_decorator() -> None:
    options = {"retry": [11, 22], "max_attempts": 3, "retry_for": {KeyError: None}}
    delays = [run_one(raising(ValueError()), attempt=n, options=options).outcome for n in (1, 2)]
    assert [one.delay for one in delays] == [11, 22]
    assert run_one(raising(ValueError()), attempt=3, options=options).outcome.reason == "attempts"
    assert run_one(raising(KeyError()), options=options).outcome.reason == "rejected"
    assert run_one(raising(SystemExit(1)), options=options).outcome.delay == 11
    assert run_one(raising(ValueError()), headers={"max_attempts": 1}).outcome.reason == "attempts"


def test_settings_of_the_environment_are_not_read(env: Any) -> None:
    env(QUEUE_WORKER_MAX_ATTEMPTS="1", QUEUE_WORKER_RETRY_SECONDS="nonsense")
    assert run_one(raising(ValueError())).outcome.delay == 60


def test_on_error_of_the_app_is_asked() -> None:
    app = app_of(raising(ValueError("odd")))
    app.on_error(lambda job, error: Reject(f"{error} with {job.payload}"))
    found = run_one(None, {"a": 1}, app)
    assert found.outcome.error.startswith("ValueError: odd\non_error: odd with {'a': 1}")


def test_an_invalid_payload_never_reaches_the_handler() -> None:
    def handle(job: Job[Order]) -> None:
        raise AssertionError("not reached")

    found = run_one(handle, {"amount": "five", "secret": 1})
    assert found.outcome.reason == "invalid"
    assert isinstance(found.error, InvalidPayload)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_what_is_meant_for_the_test_run_goes_through(error: BaseException) -> None:
    with pytest.raises(type(error)):
        run_one(raising(error))


# ------------------------------------------------------------------------------------------ the database that is none


def test_what_is_asked_of_the_database_is_written_down_and_answered() -> None:
    def handle(job: Job[dict[str, Any]]) -> list[Any]:
        (account,) = job.call("shop.account", id=7)
        with job.transaction() as tx:
            cursor = tx.execute("select n from t where id = %s", [account["id"]])
            rows = [cursor.rowcount, cursor.fetchone(), *cursor, cursor.fetchone(), cursor.fetchall()]
            tx.call("shop.charge", {"id": 7})
            assert job.send("next", {"n": 1}, delay_seconds=5) == 1
        return rows

    def answers(text: str, params: Any) -> list[Any]:
        return [{"id": params["id"]}] if text == "shop.account" else [(1,), (2,)] if "from t" in text else []

    found = run_one(handle, answers=answers)
    assert found.outcome == Ack()
    assert found.settled
    assert found.result == [2, (1,), (2,), None, []]
    assert found.calls == (Called("shop.account", {"id": 7}), Called("shop.charge", {"id": 7}))
    assert found.statements == (Executed("select n from t where id = %s", [7]),)
    assert found.sent == (Sent("next", {"n": 1}, {"delay_seconds": 5}),)


def test_a_transaction_that_fails_leaves_nothing() -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        job.send("before", {})
        with job.transaction() as tx:
            tx.execute("insert")
            job.send("inside", {})
            raise ValueError("odd")

    found = run_one(handle)
    assert [one.queue for one in found.sent] == ["before"]
    assert (found.statements, found.settled) == ((), False)
    assert isinstance(found.outcome, RetryOutcome)


def test_an_error_after_the_transaction_undoes_nothing() -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        with job.transaction() as tx:
            tx.execute("insert")
        raise ValueError("late")

    found = run_one(handle)
    assert found.outcome == Ack()
    assert str(found.error) == "late"
    assert len(found.statements) == 1


def test_a_cancelled_run_sees_it_and_has_no_transaction() -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        assert job.cancelled
        with job.transaction():
            raise AssertionError("not reached")

    found = run_one(handle, cancelled=True)
    assert found.outcome == Release(5)
    assert isinstance(found.error, LeaseLost)


# ------------------------------------------------------------------------------------------ targets


def test_a_plain_handler_has_the_default_options() -> None:
    def handle(job: Job[Order]) -> int:
        return job.payload.amount

    assert run(handle, {"amount": 5}).result == 5
    assert run(handle, {"amount": "x"}).outcome.reason == "invalid"


def test_what_the_decorator_made_is_taken_by_its_processor() -> None:
    class Handle:
        processor = app_of(raising(ValueError()), retry=[7]).processors["orders"]

    assert run(Handle(), {}).outcome.delay == 7  # type: ignore[arg-type]


@pytest.mark.parametrize(("target", "arguments"), [(5, {}), (lambda job: None, {"attempt": 0})])
def test_a_wrong_call_is_told(target: Any, arguments: Any) -> None:
    with pytest.raises(UsageError):
        run(target, {}, **arguments)
