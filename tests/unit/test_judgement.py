"""`on_error`: who is asked, in which order, and what an answer leads to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from queue_worker import App, Job, errors, events, judgement
from queue_worker.config import QueueOptions
from queue_worker.errors import ConfigError, Panic, Reject, TimeLimit, Unavailable
from queue_worker.errors import Retry as AskRetry
from queue_worker.message import DeadLetter, Message, Outcome, Receipt, Release, Retry
from queue_worker.retry import RetryPolicy

POLICY = RetryPolicy(QueueOptions(max_attempts=3, breaker_seconds=20))


def judged(app: App, error: BaseException, failures: int = 0, *, hurry: bool = False) -> Outcome:
    message = Message("mine", Receipt(7, 1, None), '{"a": 1}', {"h": 1}, failures)

    def job() -> Job[Any]:
        return Job(message, {"a": 1}, 3, None)  # type: ignore[arg-type]

    return judgement.judge(POLICY, app.error_callbacks, message, error, job, hurry=hurry)


def answering(*answers: Any) -> App:
    """An app with one callback for each answer; an exception is raised."""
    app = App()
    for answer in answers:

        def callback(job: Job[Any], error: Exception, answer: Any = answer) -> Any:
            if isinstance(answer, BaseException) and not isinstance(answer, errors.Steering):
                raise answer
            return answer

        app.on_error(callback)
    return app


@pytest.fixture
def complaints() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    with events.capture("on_error.failed") as seen:
        yield seen


def test_each_answer_leads_to_its_outcome() -> None:
    error = ValueError("odd")
    assert judged(answering(None), error) == Retry(60, "ValueError: odd")
    assert judged(answering(AskRetry("busy", delay=5)), error) == Retry(5, "ValueError: odd\non_error: busy")
    assert judged(answering(AskRetry("busy")), error) == Retry(60, "ValueError: odd\non_error: busy")
    assert judged(answering(Reject("known bug")), error) == DeadLetter(
        "rejected", "ValueError: odd\non_error: known bug"
    )
    assert judged(answering(Unavailable("down", delay=40)), error) == Release(40, 40, "down")
    assert judged(answering(Unavailable("down")), error) == Release(20, 20, "down")


def test_an_answer_costs_an_attempt_like_any_other_retry() -> None:
    assert judged(answering(AskRetry("busy", delay=5)), ValueError("odd"), 2) == DeadLetter(
        "attempts", "ValueError: odd\non_error: busy"
    )


def test_an_answer_may_be_raised() -> None:
    app = App()

    @app.on_error
    def callback(job: Job[Any], error: Exception) -> None:
        raise Reject("known bug") from error

    assert isinstance(judged(app, ValueError("odd")), DeadLetter)


def test_the_first_answer_wins_and_the_others_are_not_asked() -> None:
    asked = []
    app = answering(None, Reject("first"))
    app.on_error(lambda job, error: asked.append(error))
    assert judged(app, ValueError("odd")) == DeadLetter("rejected", "ValueError: odd\non_error: first")
    assert asked == []
    assert isinstance(judged(answering(AskRetry(delay=1), Reject("second")), ValueError()), Retry)


@pytest.mark.parametrize(
    "failure",
    [errors.Reject("no"), errors.Retry("later"), errors.InvalidPayload("bad"), errors.UnsupportedVersion("9"),
     errors.Unavailable("down"), ValueError("odd"), TimeLimit("slow")],
    ids=lambda one: type(one).__name__,
)  # fmt: skip
def test_every_failure_is_told_and_may_be_answered(failure: Exception) -> None:
    told: list[tuple[Any, Exception]] = []
    app = App()

    @app.on_error
    def callback(job: Job[Any], error: Exception) -> AskRetry:
        told.append((job, error))
        return AskRetry("again", delay=9)

    found = judged(app, failure)
    assert isinstance(found, Retry)
    assert found.delay == 9
    ((job, error),) = told
    assert error is failure
    assert (job.queue, job.msg_id, job.attempt, job.max_attempts, job.headers) == ("mine", 7, 1, 3, {"h": 1})


@pytest.mark.parametrize(
    "trouble",
    [errors.LeaseLost("gone"), errors.TransportUnavailable("away"), errors.CallRefused("deadlock", "40P01")],
    ids=lambda one: type(one).__name__,
)
def test_what_nobody_did_is_not_told(trouble: Exception) -> None:
    assert judged(answering(Reject("no")), trouble) == Release(5)


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), MemoryError("big"), GeneratorExit()])
def test_what_is_no_ordinary_exception_comes_as_a_panic(raised: BaseException) -> None:
    told: list[Exception] = []
    app = App()
    app.on_error(lambda job, error: told.append(error))
    found = judged(app, raised)
    assert isinstance(told[0], Panic)
    assert told[0].__cause__ is raised
    assert str(told[0]).startswith(type(raised).__name__)
    # Stored is what was raised.
    assert isinstance(found, Retry)
    assert found.error.startswith(type(raised).__name__)


def test_a_panic_that_the_engine_raised_is_not_wrapped_again() -> None:
    told: list[Exception] = []
    app = App()
    app.on_error(lambda job, error: told.append(error))
    panic = Panic("the child process died of signal 9")
    assert judged(app, panic) == Retry(60, "Panic: the child process died of signal 9")
    assert told == [panic]


@pytest.mark.parametrize("broken", [KeyError("oops"), SystemExit(1), MemoryError()], ids=repr)
def test_a_callback_that_fails_is_logged_and_the_next_is_asked(broken: BaseException, complaints: Any) -> None:
    assert judged(answering(broken, Reject("second")), ValueError()) == DeadLetter(
        "rejected", "ValueError\non_error: second"
    )
    ((_, fields),) = complaints
    assert fields["queue"] == "mine"
    assert fields["msg_id"] == 7
    assert fields["callback"].endswith("callback")
    assert fields["error"].startswith(type(broken).__name__)


@pytest.mark.parametrize("nonsense", [True, "retry", 60, Retry(1, "an outcome"), AskRetry])
def test_nonsense_is_no_answer(nonsense: Any, complaints: Any) -> None:
    assert judged(answering(nonsense), ValueError("odd")) == Retry(60, "ValueError: odd")
    ((_, fields),) = complaints
    assert fields["error"].endswith("not Retry, Reject, Unavailable or None")


def test_an_answer_without_its_fields_does_not_lose_the_message() -> None:
    class Mine(AskRetry):
        def __init__(self) -> None:
            pass

    found = judged(answering(Mine()), ValueError("odd"))
    assert isinstance(found, Retry)
    assert "AttributeError" in found.error


class Mute(BaseException):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_that_cannot_be_read_is_told_all_the_same() -> None:
    assert judged(answering(Reject("mute")), Mute()) == DeadLetter(
        "rejected", "Mute: (its text cannot be made)\non_error: mute"
    )


@pytest.mark.parametrize(
    ("callback", "told"),
    [(lambda error: None, "must take two arguments"), (lambda: None, "must take two arguments")],
)
def test_a_callback_of_the_wrong_shape_is_refused(callback: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        App().on_error(callback)


def test_an_async_callback_is_refused() -> None:
    async def callback(job: Job[Any], error: Exception) -> None: ...

    with pytest.raises(ConfigError, match="plain def"):
        App().on_error(callback)


# ------------------------------------------------------------------------------------------ time limits


def test_a_callback_that_hangs_holds_the_supervising_thread_only_once(
    complaints: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judgement, "PATIENCE", 0.05)
    door, inside = threading.Event(), []
    app = App()

    @app.on_error
    def hangs(job: Job[Any], error: Exception) -> Reject:
        inside.append(error)
        door.wait(30)
        return Reject("too late")

    for _ in range(3):
        assert judged(app, TimeLimit("slow"), hurry=True) == Retry(60, "timeout: slow", "timeout")
    assert [fields["error"] for _, fields in complaints] == ["it is late", "another one is late", "another one is late"]
    assert len(inside) == 1
    door.set()
    for thread in threading.enumerate():
        if thread.name == "on_error":
            thread.join(10)
    monkeypatch.setattr(judgement, "PATIENCE", 30)
    assert isinstance(judged(app, TimeLimit("slow"), hurry=True), DeadLetter)
