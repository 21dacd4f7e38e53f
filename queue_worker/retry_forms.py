"""The forms in which a retry policy can be written, and the delay that each one gives.

The delays are tenacity's wait strategies, called as plain functions: a sleeping retry round a handler would hold
a slot and a lease.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Literal

from tenacity import RetryCallState, Retrying
from tenacity.wait import wait_base, wait_chain, wait_exponential, wait_fixed, wait_incrementing

from queue_worker.message import MAX_DELAY

RetryCallable = Callable[[int, BaseException], float | timedelta | None]
"""`(attempt, error)`: the attempt that has just failed, from 1, and what it raised; returns seconds (or a timedelta)
before the next one, or None: never again. It must be quick and must not wait for anything."""

RetryForm = Literal["exponential", "fixed", "linear"] | tuple[float, ...] | RetryCallable
"""A named series, a list of seconds (the last repeats), or a callable."""

_NAMES = ("exponential", "fixed", "linear")
_MOST_DELAYS = 1000


def parse_form(value: Any) -> Any:
    """Return `value` as a RetryForm; text such as `fixed` or `10,60,300` is what the environment has.

    Raises ValueError.
    """
    if callable(value):
        return _check_callable(value)
    if isinstance(value, str) and value.strip().lower() in _NAMES:
        return value.strip().lower()
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    try:
        delays = tuple(map(_part, parts))
    except (TypeError, ValueError):
        delays = ()
    if not 0 < len(delays) <= _MOST_DELAYS or not all(0 <= delay <= MAX_DELAY for delay in delays):
        raise ValueError("must be exponential, fixed, linear or a list of seconds such as 10,60,300")
    return delays


def _part(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError("a switch is not a delay")
    return float(value.total_seconds() if isinstance(value, timedelta) else value)


def parse_forms(value: Any) -> dict[type[BaseException], Any]:
    """Return `value` as retry forms by exception class, None for those that are never retried; raises ValueError."""
    if not isinstance(value, Mapping):
        raise ValueError("must be a dict from exception classes to what `retry` takes, or None: never retried")
    forms: dict[type[BaseException], Any] = {}
    for kind, form in value.items():
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ValueError(f"has the key {kind!r:.60}, which is not an exception class")
        try:
            forms[kind] = None if form is None or form is False else parse_form(form)
        except ValueError as error:
            raise ValueError(f"for {kind.__name__} {error}, or None: never retried") from None
    return forms


def _check_callable(value: Any) -> Any:
    if inspect.iscoroutinefunction(value):
        raise ValueError("must be a plain function: a retry policy decides at once, it cannot be async")
    try:
        inspect.signature(value).bind(1, ValueError())
    except TypeError:
        raise ValueError("must be a callable that takes (attempt, error) and returns seconds, or None") from None
    except ValueError:
        return value  # written in C: nothing tells what it takes
    return value


def nominal(form: RetryForm, attempt: int, error: BaseException | None, first: float, limit: float) -> float | None:
    """Return the seconds, without jitter, before the next run after the failed `attempt` (from 1); None: no next one.

    `first` and `limit` are the options `retry_seconds` and `retry_max_seconds`; a list knows neither. Whatever a
    callable raises is let through, and what it returns instead of a delay is a ValueError.
    """
    if isinstance(form, str):
        return min(_waited(_named(form, first, limit), attempt), limit)
    if isinstance(form, tuple):
        return _waited(wait_chain(*map(wait_fixed, form)), attempt)
    answer = form(attempt, error or Exception())
    return None if answer is None else min(_seconds(answer), limit)


def longest(form: RetryForm | None, attempt: int, first: float, limit: float, jitter: float) -> float:
    """Return the most seconds that `form` can give after `attempt`, jitter included; a callable is not called."""
    if form is None:
        return 0.0
    if callable(form):
        return limit
    delay = (nominal(form, attempt, None, first, limit) or 0.0) * (1 + jitter)
    return min(delay, MAX_DELAY if isinstance(form, tuple) else limit)


def _named(name: str, first: float, limit: float) -> wait_base:
    match name:
        case "fixed":
            return wait_fixed(first)
        case "linear":
            return wait_incrementing(start=first, increment=first, max=limit)
        case _:
            return wait_exponential(multiplier=first, max=limit)


# tenacity's strategies take the state of a call; this one only gives them the number of the attempt.
_NEVER_RUN = Retrying()


def _waited(wait: wait_base, attempt: int) -> float:
    state = RetryCallState(_NEVER_RUN, None, (), {})
    state.attempt_number = max(1, attempt)
    return max(0.0, float(wait(state)))


def _seconds(answer: Any) -> float:
    value = answer.total_seconds() if isinstance(answer, timedelta) else answer
    # Finite is asked of the original: an integer of a thousand digits does not fit into a float.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"it returned {answer!r:.60} instead of seconds or None")
    return float(min(value, MAX_DELAY))
