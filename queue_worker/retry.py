"""What becomes of a message after an error: a pure decision, no clock, no sleeping, no database.

The delays are tenacity's wait strategies, called as plain functions: a sleeping retry round a handler would hold
a slot and a lease.
"""

from __future__ import annotations

import math
import random
import traceback
from pathlib import Path

from tenacity import RetryCallState, Retrying
from tenacity.wait import wait_base, wait_chain, wait_exponential, wait_fixed, wait_incrementing

from queue_worker.config import QueueOptions
from queue_worker.errors import CallRefused, InvalidPayload, LeaseLost, Reject, Retry, TransportUnavailable
from queue_worker.log import redact
from queue_worker.message import MAX_DELAY, MAX_TEXT, DeadLetter, Message, Outcome, Release, clean_text
from queue_worker.message import Retry as RetryOutcome
from queue_worker.sqlstates import nobodys_fault

RELEASE_SECONDS = 5.0
"""Pause before a message that infrastructure gave back is tried again, in seconds."""

MOST_ATTEMPTS = 1000
"""Largest `max_attempts` that a message may ask for."""

LONGEST_TIMEOUT = 86_400.0
"""Longest time limit that a message may ask for, in seconds."""

_FRAMES = 3
_LONGEST_PART = 2 * MAX_TEXT


class RetryPolicy:
    """The retry rules of one queue; the headers of a message beat them for that message."""

    def __init__(self, wait: wait_base, max_attempts: int, timeout: float, jitter: float, limit: float) -> None:
        self._wait = wait
        self._max_attempts = max_attempts
        self._timeout = timeout
        self._jitter = jitter
        self._limit = limit

    @classmethod
    def from_options(cls, options: QueueOptions) -> RetryPolicy:
        """Return the policy that `options` describe."""
        first, limit = options.retry_seconds, options.retry_max_seconds
        match options.retry:
            case "exponential":
                wait: wait_base = wait_exponential(multiplier=first, max=limit)
            case "fixed":
                wait = wait_fixed(first)
            case "linear":
                wait = wait_incrementing(start=first, increment=first, max=limit)
            case delays:
                wait, limit = wait_chain(*map(wait_fixed, delays)), MAX_DELAY
        return cls(wait, options.max_attempts, options.timeout_seconds, options.retry_jitter, limit)

    def delay(self, failures: int) -> float:
        """Return the seconds before the next attempt after `failures` charged failures (from 1)."""
        return self._with_jitter(self._nominal(failures))

    def series(self) -> list[float]:
        """Return the delays of all retries in seconds, without jitter: 60, 120, 240, 480, 960 by default."""
        return [self._nominal(failures) for failures in range(1, self._max_attempts)]

    def max_attempts_for(self, message: Message) -> int:
        """Return how often `message` may run: its header `max_attempts` (1..1000), else the queue's setting."""
        asked = _number(message.headers.get("max_attempts"), 1, MOST_ATTEMPTS)
        return self._max_attempts if asked is None or asked != int(asked) else int(asked)

    def timeout_for(self, message: Message) -> float:
        """Return the time limit of `message` in seconds: its header `timeout_seconds`, else the queue's setting."""
        asked = _number(message.headers.get("timeout_seconds"), 0, LONGEST_TIMEOUT)
        return asked or self._timeout

    def delay_for(self, message: Message) -> float:
        """Return the seconds before the next attempt if the running one fails.

        The header `retry_delay_seconds` beats the queue's series.
        """
        asked = _number(message.headers.get("retry_delay_seconds"), 0, MAX_DELAY)
        return self.delay(message.attempt) if asked is None else asked

    def outcome_for(self, message: Message, error: BaseException) -> Outcome:
        """Return what becomes of `message` after its handler raised `error`.

        Errors of the infrastructure and lost leases give the message back uncharged; everything else costs an attempt,
        and without attempts left the message becomes a dead letter. Reasons: `invalid`, `rejected`, `attempts`.
        """
        match error:
            case InvalidPayload():
                return DeadLetter("invalid", _clean(_words(error)))
            case Reject():
                return DeadLetter("rejected", _clean(_words(error)))
            case LeaseLost() | TransportUnavailable():
                return Release(RELEASE_SECONDS)
            case CallRefused() if nobodys_fault(error.sqlstate):
                return Release(RELEASE_SECONDS)
            case Retry():
                asked = _number(error.delay, 0, MAX_DELAY)
                return self._charge(message, asked, _clean(_words(error)))
        return self._charge(message, None, error_text(error))

    def _charge(self, message: Message, delay: float | None, text: str) -> Outcome:
        if message.attempt >= self.max_attempts_for(message):
            return DeadLetter("attempts", text)
        return RetryOutcome(self.delay_for(message) if delay is None else delay, text)

    def _nominal(self, failures: int) -> float:
        state = RetryCallState(_NEVER_RUN, None, (), {})
        state.attempt_number = max(1, failures)
        return min(max(0.0, float(self._wait(state))), self._limit)

    def _with_jitter(self, delay: float) -> float:
        if not self._jitter:
            return delay
        return min(delay * (1 + self._jitter * random.random()), self._limit)  # noqa: S311


# tenacity's strategies take the state of a call; this one only gives them the number of the attempt.
_NEVER_RUN = Retrying()


def error_text(error: BaseException) -> str:
    """Return `ValueError: text` and the last frames of the traceback, without secrets and fit to be stored."""
    lines = [_words(error, type(error).__name__)]
    cause = error.__cause__
    if cause is not None:
        lines.append("caused by " + _words(cause, type(cause).__name__))
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    lines += [f"  at {'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} in {frame.name}" for frame in frames]
    return _clean("\n".join(lines))


def _words(error: BaseException, name: str = "") -> str:
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be made)"
    # Cut early: the patterns of redact() need not look at a megabyte of which four kilobytes stay.
    text = text[:_LONGEST_PART]
    return f"{name}: {text}" if name and text else name or text


def _clean(text: str) -> str:
    return clean_text(redact(text))


def _number(value: object, low: float, high: float) -> float | None:
    """Return `value` as a number in low..high, else None: headers are what anybody wrote into the queue."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Compared before it is converted: an integer of a thousand digits does not fit into a float.
    return float(value) if low <= value <= high and not math.isnan(value) else None
