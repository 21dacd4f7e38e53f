"""The retry policy: its series, and what becomes of a message after each kind of error."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_worker import errors
from queue_worker.config import QueueOptions
from queue_worker.config_options import retry_horizon
from queue_worker.log import register_secret
from queue_worker.message import (
    MAX_DELAY,
    MAX_TEXT,
    DeadLetter,
    Message,
    Outcome,
    Receipt,
    Release,
    Retry,
)
from queue_worker.retry import RetryPolicy, error_text

DEFAULT = RetryPolicy.from_options(QueueOptions())


def message(failures: int = 0, **headers: Any) -> Message:
    return Message("email", Receipt(1, 1, None), "{}", headers, failures)


def policy(**options: Any) -> RetryPolicy:
    return RetryPolicy.from_options(QueueOptions(**options))


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


# ------------------------------------------------------------------------------------------ delays


def test_the_default_series_is_that_of_the_design() -> None:
    assert DEFAULT.series() == [60, 120, 240, 480, 960]
    assert [DEFAULT.delay(failures) for failures in (1, 2, 3, 4, 5)] == [60, 120, 240, 480, 960]


@pytest.mark.parametrize(
    ("options", "series"),
    [
        ({"retry": "fixed"}, [60, 60, 60, 60, 60]),
        ({"retry": "fixed", "retry_seconds": 600, "retry_max_seconds": 300}, [300, 300, 300, 300, 300]),
        ({"retry": "linear", "retry_seconds": 10}, [10, 20, 30, 40, 50]),
        ({"retry": "linear", "retry_max_seconds": 150}, [60, 120, 150, 150, 150]),
        ({"retry": "10,60,300"}, [10, 60, 300, 300, 300]),
        ({"retry": [10, 172_800], "max_attempts": 3}, [10, 172_800]),
        ({"retry_seconds": 1}, [1, 2, 4, 8, 16]),
        ({"retry_seconds": 0}, [0, 0, 0, 0, 0]),
        ({"retry_max_seconds": 200}, [60, 120, 200, 200, 200]),
        ({"max_attempts": 1}, []),
        ({"max_attempts": 2}, [60]),
    ],
)
def test_each_policy_gives_its_series(options: dict[str, Any], series: list[float]) -> None:
    assert policy(**options).series() == series


OPTIONS = st.fixed_dictionaries(
    {
        "retry": st.one_of(
            st.sampled_from(["exponential", "fixed", "linear"]),
            st.lists(st.floats(0, MAX_DELAY), min_size=1, max_size=9).map(tuple),
        ),
        "retry_seconds": st.floats(0, MAX_DELAY),
        "retry_max_seconds": st.floats(0.001, MAX_DELAY),
        "retry_jitter": st.floats(0, 1),
        "max_attempts": st.integers(1, 1000),
        "lease_seconds": st.integers(1, 43_200),
    }
)


@given(OPTIONS, st.integers(1, 2000))
def test_a_delay_lies_between_the_nominal_one_and_its_jitter_and_never_beyond_a_year(
    chosen: dict[str, Any], failures: int
) -> None:
    nominal = policy(**{**chosen, "retry_jitter": 0}).delay(failures)
    delay = policy(**chosen).delay(failures)
    assert 0 <= nominal <= delay <= min(nominal * (1 + chosen["retry_jitter"]), MAX_DELAY) or math.isclose(
        nominal, delay
    )


@given(OPTIONS)
def test_the_horizon_of_the_settings_is_the_sum_of_these_delays(chosen: dict[str, Any]) -> None:
    options = QueueOptions(**{**chosen, "retry_jitter": 0})
    expected = sum(RetryPolicy.from_options(options).series()) + options.max_attempts * options.lease_seconds
    assert math.isclose(retry_horizon(options), expected)
    assert retry_horizon(QueueOptions(**chosen)) >= expected or math.isclose(
        retry_horizon(QueueOptions(**chosen)), expected
    )


# ------------------------------------------------------------------------------------------ outcomes


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (errors.InvalidPayload("to: Field required"), DeadLetter("invalid", "to: Field required")),
        (errors.Reject("the account is closed"), DeadLetter("rejected", "the account is closed")),
        (errors.Retry("busy", delay=5), Retry(5, "busy")),
        (errors.Retry("busy", delay=0), Retry(0, "busy")),
        (errors.Retry("busy"), Retry(60, "busy")),
        (errors.Retry("busy", delay=-1), Retry(60, "busy")),
        (errors.Retry("busy", delay=math.nan), Retry(60, "busy")),
        (errors.TransportUnavailable("gone"), Release(5)),
        (errors.LeaseLost("gone"), Release(5)),
        (ValueError("odd"), Retry(60, "ValueError: odd")),
        (KeyError(), Retry(60, "KeyError")),
        (SystemExit(3), Retry(60, "SystemExit: 3")),
        (KeyboardInterrupt(), Retry(60, "KeyboardInterrupt")),
    ],
)
def test_the_first_failure_leads_to(error: BaseException, outcome: Outcome) -> None:
    assert DEFAULT.outcome_for(message(), error) == outcome


@pytest.mark.parametrize(
    ("sqlstate", "charged"),
    [
        ("40001", False), ("40P01", False), ("25006", False), ("53300", False), ("53100", False), ("57P01", False),
        ("57P03", False), ("08006", False), ("57014", True), ("23505", True), ("42P01", True), ("", True),
    ],
)  # fmt: skip
def test_trouble_of_the_database_costs_no_attempt(sqlstate: str, charged: bool) -> None:
    for failures in (0, 5):
        outcome = DEFAULT.outcome_for(message(failures), errors.CallRefused("refused", sqlstate))
        assert isinstance(outcome, Retry | DeadLetter) is charged
        assert isinstance(outcome, Release) is not charged


def test_each_failure_waits_longer_and_the_last_attempt_is_a_dead_letter() -> None:
    outcomes = [DEFAULT.outcome_for(message(failures), ValueError("odd")) for failures in range(6)]
    assert [outcome.delay for outcome in outcomes[:5] if isinstance(outcome, Retry)] == [60, 120, 240, 480, 960]
    assert outcomes[5] == DeadLetter("attempts", "ValueError: odd")


def test_retry_asked_for_by_the_handler_costs_an_attempt_too() -> None:
    assert DEFAULT.outcome_for(message(5), errors.Retry("busy", delay=5)) == DeadLetter("attempts", "busy")


# ------------------------------------------------------------------------------------------ headers


def test_headers_beat_the_policy_for_one_message() -> None:
    assert DEFAULT.max_attempts_for(message(max_attempts=2)) == 2
    assert DEFAULT.timeout_for(message(timeout_seconds=7)) == 7
    assert DEFAULT.delay_for(message(failures=3, retry_delay_seconds=9)) == 9
    assert DEFAULT.delay_for(message(retry_delay_seconds=0)) == 0
    assert isinstance(DEFAULT.outcome_for(message(1, max_attempts=2), ValueError()), DeadLetter)
    assert DEFAULT.outcome_for(message(6, max_attempts=9, retry_delay_seconds=1), ValueError()) == Retry(
        1, "ValueError"
    )


HOSTILE = [
    None, True, False, "7", "", -1, 0.5, math.nan, math.inf, -math.inf, 10**400, -(10**400), 1e308, [], [3], {},
    {"a": 1},
]  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: f"{value!r:.12}")
def test_hostile_headers_are_ignored(value: Any) -> None:
    hostile = message(max_attempts=value, retry_delay_seconds=value, timeout_seconds=value)
    assert DEFAULT.max_attempts_for(hostile) == 6
    assert DEFAULT.delay_for(hostile) == (0.5 if value == 0.5 else 60)
    assert DEFAULT.timeout_for(hostile) == (0.5 if value == 0.5 else 60)


@pytest.mark.parametrize(("value", "attempts"), [(0, 6), (1, 1), (1000, 1000), (1001, 6), (2.0, 2), (2.5, 6)])
def test_max_attempts_has_its_bounds(value: float, attempts: int) -> None:
    assert DEFAULT.max_attempts_for(message(max_attempts=value)) == attempts


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["max_attempts", "retry_delay_seconds", "timeout_seconds"])


@given(st.dictionaries(NAMES, JSON), st.integers(0, 2000))
def test_no_header_breaks_the_decision(headers: dict[str, Any], failures: int) -> None:
    hostile = message(failures, **headers)
    assert 1 <= DEFAULT.max_attempts_for(hostile) <= 1000
    assert 0 < DEFAULT.timeout_for(hostile) <= 86_400
    assert 0 <= DEFAULT.delay_for(hostile) <= MAX_DELAY
    assert isinstance(DEFAULT.outcome_for(hostile, ValueError("odd")), Retry | DeadLetter)


# ------------------------------------------------------------------------------------------ error texts


def outer(text: str) -> None:
    try:
        raise KeyError(text)
    except KeyError as error:
        raise ValueError("odd") from error


def test_an_error_text_names_type_text_cause_and_place() -> None:
    with pytest.raises(ValueError, match="odd") as caught:
        outer("inner")
    lines = error_text(caught.value).split("\n")
    assert lines[:2] == ["ValueError: odd", "caused by KeyError: 'inner'"]
    assert lines[-1].startswith("  at unit/test_retry.py:")
    assert lines[-1].endswith(" in outer")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_without_a_text_is_still_told() -> None:
    assert error_text(Mute()) == "Mute: (its text cannot be made)"


@given(
    st.text(st.characters(), max_size=200)
    | st.binary(max_size=50).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
)
def test_any_error_text_can_be_stored(text: str) -> None:
    for error in (raised(ValueError(text)), errors.Reject(text), errors.Retry(text), errors.InvalidPayload(text)):
        outcome = DEFAULT.outcome_for(message(), error)
        assert isinstance(outcome, Retry | DeadLetter)
        outcome.error.encode("utf-8")
        assert "\x00" not in outcome.error
        assert len(outcome.error) <= MAX_TEXT


def test_a_huge_error_text_is_cut() -> None:
    outcome = DEFAULT.outcome_for(message(), ValueError("x" * 10_000_000))
    assert isinstance(outcome, Retry)
    assert len(outcome.error) == MAX_TEXT


@pytest.mark.parametrize("kind", [ValueError, errors.Reject, errors.Retry, errors.InvalidPayload])
def test_no_secret_is_stored_with_a_message(kind: type[Exception]) -> None:
    register_secret("hunter2-registered")
    text = "hunter2-registered postgresql://u:hunter2-dsn@h/x sk_live_hunter2 password=hunter2-word"
    outcome = DEFAULT.outcome_for(message(), raised(kind(text)))
    assert isinstance(outcome, Retry | DeadLetter)
    assert "hunter2" not in outcome.error
    assert "postgresql://u:***@h/x" in outcome.error
