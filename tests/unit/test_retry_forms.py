"""Retry policies by exception class and by callable: which one counts, and what a broken one does."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_worker import App, errors
from queue_worker.config import QueueOptions, load_settings
from queue_worker.config_options import retry_horizon
from queue_worker.errors import ConfigError
from queue_worker.message import DeadLetter, Message, Outcome, Receipt, Retry
from queue_worker.retry import RetryPolicy, is_panic, kind_name


class PaymentDeclined(Exception):
    """Never retried in these tests."""


class Expired(PaymentDeclined):
    """More specific than PaymentDeclined."""


def message(failures: int = 0, **headers: Any) -> Message:
    return Message("mine", Receipt(1, 1, None), "{}", headers, failures)


def options(**decorator: Any) -> QueueOptions:
    return load_settings().options_for("mine", decorator)


def outcome(error: BaseException, failures: int = 0, headers: dict[str, Any] | None = None, **chosen: Any) -> Outcome:
    return RetryPolicy(options(**chosen)).outcome_for(message(failures, **(headers or {})), error)


def delays(error: BaseException, **chosen: Any) -> list[float]:
    """The delays of a message that always fails with `error`, until it is a dead letter."""
    found = []
    while isinstance(one := outcome(error, len(found), **chosen), Retry):
        found.append(one.delay)
    return found


# ------------------------------------------------------------------------------------------ by exception class

FOR: dict[str, Any] = {
    "retry_for": {
        TimeoutError: [1, 5],
        PaymentDeclined: None,
        Expired: "fixed",
        LookupError: lambda attempt, error: 100 * attempt,
        OSError: timedelta(minutes=2),
    },
    "max_attempts": 4,
}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), [1, 5, 5]),
        (ConnectionResetError(), [120, 120, 120]),
        (KeyError(), [100, 200, 300]),
        (Expired(), [60, 60, 60]),
        (ValueError(), [60, 120, 240]),
        (PaymentDeclined(), []),
    ],
    ids=repr,
)
def test_the_most_specific_class_decides_and_others_follow_the_queue(error: Exception, expected: list[float]) -> None:
    assert delays(error, **FOR) == expected


@pytest.mark.parametrize("never", [None, False])
@pytest.mark.parametrize("failures", [0, 5])
def test_what_is_never_retried_is_rejected_on_any_attempt(never: Any, failures: int) -> None:
    found = outcome(PaymentDeclined("card 42"), failures, retry_for={PaymentDeclined: never})
    assert isinstance(found, DeadLetter)
    assert (found.reason, found.error) == ("rejected", "PaymentDeclined: card 42")


def test_a_time_limit_is_a_timeout_error() -> None:
    limit = errors.TimeLimit("the handler ran longer than 5 s")
    text = "timeout: the handler ran longer than 5 s"
    assert outcome(limit, **FOR) == Retry(1, text, "timeout")
    assert outcome(limit) == Retry(60, text, "timeout")
    assert outcome(limit, 5) == DeadLetter("attempts", text)


@pytest.mark.parametrize("error", [SystemExit(3), MemoryError(), errors.Panic("the child died")], ids=repr)
def test_panics_have_a_policy_of_their_own(error: BaseException) -> None:
    assert isinstance(outcome(error, retry_for={errors.Panic: None}), DeadLetter)
    assert delays(error, retry_for={errors.Panic: [7]}, max_attempts=2) == [7]
    assert delays(error, retry_for={errors.Panic: None, type(error): [8]}, max_attempts=2) == [8]
    assert delays(ValueError(), retry_for={errors.Panic: None}, max_attempts=2) == [60]


def test_an_exception_of_another_process_has_the_policy_of_its_original() -> None:
    foreign = type("Expired", (errors.QueueWorkerError,), {})("card 42")
    assert delays(foreign, **FOR) == [60, 120, 240]
    foreign.__origin_kinds__ = tuple(map(kind_name, Expired.__mro__))  # type: ignore[attr-defined]
    assert delays(foreign, retry_for={PaymentDeclined: [9]}, max_attempts=2) == [9]
    assert delays(foreign, retry_for={PaymentDeclined: [9], Expired: [8], errors.Panic: None}, max_attempts=2) == [8]
    for raised, panic in ((ValueError, False), (SystemExit, True), (MemoryError, True)):
        foreign.__origin_kinds__ = tuple(map(kind_name, raised.__mro__))  # type: ignore[attr-defined]
        assert is_panic(foreign) is panic


def test_an_explicit_delay_beats_the_class() -> None:
    class Busy(errors.Retry):
        pass

    assert outcome(Busy("busy", delay=3), retry_for={Busy: [9]}) == Retry(3, "busy")
    assert outcome(Busy("busy", delay=timedelta(seconds=4)), retry_for={Busy: [9]}) == Retry(4, "busy")  # type: ignore[arg-type]
    assert outcome(Busy("busy"), retry_for={Busy: [9]}) == Retry(9, "busy")


def test_headers_beat_every_policy_but_revive_nothing() -> None:
    headers = {"retry_delay_seconds": 77}
    for error in (TimeoutError(), KeyError(), ValueError()):
        found = outcome(error, headers=headers, **FOR)
        assert isinstance(found, Retry)
        assert found.delay == 77
    assert isinstance(outcome(PaymentDeclined(), headers=headers, **FOR), DeadLetter)
    assert isinstance(outcome(TimeoutError(), headers={"max_attempts": 1}, **FOR), DeadLetter)


# ------------------------------------------------------------------------------------------ callables


def test_a_callable_is_asked_with_the_failed_attempt_and_its_error() -> None:
    asked = []

    def decide(attempt: int, error: BaseException) -> float | timedelta | None:
        asked.append((attempt, error))
        return [1.5, timedelta(minutes=1), None][attempt - 1]

    error = ValueError("odd")
    assert delays(error, retry=decide) == [1.5, 60]
    assert asked == [(1, error), (2, error), (3, error)]
    assert outcome(error, 2, retry=decide) == DeadLetter("rejected", "ValueError: odd")
    assert RetryPolicy(options(retry=decide)).series() is None


def test_a_callable_stays_below_the_longest_delay_and_has_jitter() -> None:
    assert delays(ValueError(), retry=lambda attempt, error: 10**9, max_attempts=2) == [86_400]
    assert delays(ValueError(), retry=lambda attempt, error: 500, retry_max=300, max_attempts=2) == [300]
    spread = {
        delay
        for _ in range(20)
        for delay in delays(ValueError(), retry=lambda attempt, error: 100, retry_jitter=0.5, max_attempts=2)
    }
    assert len(spread) > 1
    assert 100 <= min(spread) <= max(spread) <= 150


def exits(attempt: int, error: BaseException) -> float:
    raise SystemExit(1)


def divides(attempt: int, error: BaseException) -> float:
    return attempt / 0


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (divides, "ZeroDivisionError: division by zero"),
        (exits, "SystemExit: 1"),
        (lambda attempt, error: "soon", "ValueError: it returned 'soon' instead of seconds or None"),
        (lambda attempt, error: -1, "ValueError: it returned -1 instead"),
        (lambda attempt, error: math.nan, "ValueError: it returned nan instead"),
        (lambda attempt, error: True, "ValueError: it returned True instead"),
    ],
)
def test_a_broken_callable_falls_back_and_says_so(broken: Any, told: str) -> None:
    note = f"its retry callable failed, so another policy was used: {told}"
    for chosen, delay in (
        ({"retry": broken}, 60),
        ({"retry_for": {ValueError: broken}, "retry": [33]}, 33),
        ({"retry_for": {ValueError: broken}, "retry": broken}, 60),
    ):
        found = outcome(ValueError("odd"), **chosen)
        assert isinstance(found, Retry)
        assert found.delay == delay
        first, second = found.error.splitlines()[:2]
        assert first == "ValueError: odd"
        assert second.startswith(note)


def test_the_note_survives_a_huge_error_text() -> None:
    found = outcome(ValueError("x" * 100_000), retry=divides)
    assert isinstance(found, Retry)
    assert "its retry callable failed" in found.error


@given(st.integers() | st.floats() | st.text() | st.none() | st.booleans() | st.timedeltas() | st.lists(st.integers()))
def test_whatever_a_callable_returns_the_message_has_an_outcome(answer: Any) -> None:
    policy = RetryPolicy(QueueOptions(retry=lambda attempt, error: answer))
    found = policy.outcome_for(message(), ValueError())
    if answer is None:
        assert isinstance(found, DeadLetter)
    else:
        assert isinstance(found, Retry)
        assert 0 <= found.delay <= 86_400


# ------------------------------------------------------------------------------------------ what is refused


async def later(attempt: int, error: BaseException) -> float:
    await asyncio.sleep(0)
    return 1.0


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"retry": lambda attempt: 1}, "processor 'mine': retry must be a callable that takes (attempt, error) and"),
    ({"retry": later}, "processor 'mine': retry must be a plain function"),
    ({"retry": "weekly"}, "processor 'mine': retry must be exponential, fixed, linear or a list of seconds"),
    ({"retry_for": [TimeoutError]}, "processor 'mine': retry_for must be a dict from exception classes"),
    ({"retry_for": {"TimeoutError": 1}}, "processor 'mine': retry_for has the key 'TimeoutError', which is not"),
    ({"retry_for": {TimeoutError: "weekly"}}, "processor 'mine': retry_for for TimeoutError must be exponential"),
    ({"retry_for": {TimeoutError: True}}, "processor 'mine': retry_for for TimeoutError must be exponential"),
    ({"retry_fro": {}}, "processor 'mine': unknown option 'retry_fro'; did you mean retry_for?"),
]


@pytest.mark.parametrize(("chosen", "told"), REFUSED)
def test_a_mistake_is_told_in_one_line(chosen: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options(**chosen)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_the_environment_knows_the_text_forms_alone_and_beats_a_callable(env: Any) -> None:
    env(QUEUE_WORKER_QUEUES__MINE__RETRY="10,20")
    assert options(retry=divides).retry == (10.0, 20.0)
    env(QUEUE_WORKER_QUEUES__MINE__RETRY_FOR="ValueError=1")
    with pytest.raises(ConfigError, match="RETRY_FOR"):
        load_settings()


def test_every_option_is_known_to_the_decorator() -> None:
    app = App()
    app.processor("mine", retry=divides, retry_for={ValueError: None}, retry_after=False, timeout=5)(lambda job: None)
    with pytest.raises(ConfigError, match="did you mean retry_for"):
        app.processor("other", retry_form={})


# ------------------------------------------------------------------------------------------ the horizon


def test_the_horizon_is_that_of_the_longest_policy() -> None:
    lease = 60 * 3
    assert retry_horizon(options(max_attempts=3, retry=[1], retry_for={OSError: [50, 10], KeyError: None})) == (
        50 + 10 + lease
    )
    assert retry_horizon(options(max_attempts=3, retry=divides, retry_max=500)) == 1000 + lease
    assert retry_horizon(
        options(max_attempts=2, retry="fixed", retry_seconds=100, retry_max=110, retry_jitter=0.5)
    ) == (110 + 120)
