"""What becomes of a message after an error: a pure decision, no clock, no sleeping, no database."""

from __future__ import annotations

import math
import random
import traceback
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from queue_worker.config import QueueOptions
from queue_worker.errors import (
    CallRefused,
    InvalidPayload,
    LeaseLost,
    Panic,
    Reject,
    Retry,
    Steering,
    TimeLimit,
    TransportUnavailable,
    Unavailable,
    UnsupportedVersion,
)
from queue_worker.http_errors import LONGEST_PAUSE, SHORTEST_PAUSE, asked_pause
from queue_worker.log import redact
from queue_worker.message import MAX_DELAY, MAX_TEXT, DeadLetter, Message, Outcome, Release, clean_text
from queue_worker.message import Retry as RetryOutcome
from queue_worker.retry_forms import RetryForm, nominal
from queue_worker.sqlstates import nobodys_fault

RELEASE_SECONDS = 5.0
"""Pause before a message that infrastructure gave back is tried again, in seconds."""

MOST_ATTEMPTS = 1000
"""Largest `max_attempts` that a message may ask for."""

LONGEST_TIMEOUT = 86_400.0
"""Longest time limit that a message may ask for, in seconds."""

_FRAMES = 3
_LONGEST_PART = 2 * MAX_TEXT


# The first class that fits counts.
_DEAD_AT_ONCE: tuple[tuple[type[BaseException], str], ...] = (
    (UnsupportedVersion, "unsupported_version"),
    (InvalidPayload, "invalid"),
    (Reject, "rejected"),
)


class RetryPolicy:
    """The retry rules of one queue; the headers of a message beat them for that message."""

    def __init__(self, options: QueueOptions) -> None:
        self._options = options

    @classmethod
    def from_options(cls, options: QueueOptions) -> RetryPolicy:
        """Return the policy that `options` describe."""
        return cls(options)

    def delay(self, failures: int) -> float:
        """Return the seconds before the next attempt after `failures` charged failures (from 1), by `retry`."""
        return self._with_jitter(self._nominal(self._options.retry, failures) or 0.0, self._options.retry)

    def series(self) -> list[float] | None:
        """Return the delays of all retries in seconds, without jitter: 60, 120, 240, 480, 960 by default.

        None where a callable decides.
        """
        form = self._options.retry
        if callable(form):
            return None
        return [self._nominal(form, failures) or 0.0 for failures in range(1, self._options.max_attempts)]

    def max_attempts_for(self, message: Message) -> int:
        """Return how often `message` may run: its header `max_attempts` (1..1000), else the queue's setting."""
        asked = _number(message.headers.get("max_attempts"), 1, MOST_ATTEMPTS)
        return self._options.max_attempts if asked is None or asked != int(asked) else int(asked)

    def timeout_for(self, message: Message) -> float:
        """Return the time limit of `message` in seconds: its header `timeout_seconds`, else the queue's setting."""
        asked = _number(message.headers.get("timeout_seconds"), 0, LONGEST_TIMEOUT)
        return asked or self._options.timeout_seconds

    def delay_for(self, message: Message, error: BaseException | None = None) -> float | None:
        """Return the seconds before the next attempt if the running one ends with `error`; None: there is none.

        The header `retry_delay_seconds` beats the delay that the policy of the error's class, or the queue's, gives;
        it does not make one that is never retried be retried.
        """
        return self._wait(message, error or Exception())[0]

    def outcome_for(self, message: Message, error: BaseException, answer: Steering | None = None) -> Outcome:
        """Return what becomes of `message` after its handler raised `error`, where `answer` is what on_error said.

        Errors of the infrastructure and lost leases give the message back uncharged, and so does a provider that
        cannot serve anybody now; everything else costs an attempt, and without attempts left the message becomes a
        dead letter. Reasons: `invalid`, `unsupported_version`, `rejected`, `attempts`.
        """
        if answer is not None:
            return self._answered(message, error, answer)
        reason = next((word for kind, word in _DEAD_AT_ONCE if isinstance(error, kind)), None)
        if reason is not None:
            return DeadLetter(reason, _story(error))
        if nobody_failed(error):
            return Release(RELEASE_SECONDS)
        return self._pause(error) or self._charge(message, error, error.delay if isinstance(error, Retry) else None)

    def _answered(self, message: Message, error: BaseException, answer: Steering) -> Outcome:
        note = "on_error: " + _words(answer)
        if isinstance(answer, Retry):
            return self._charge(message, error, answer.delay, note)
        return self._pause(answer) or DeadLetter("rejected", _story(error, note))

    def _pause(self, error: BaseException) -> Release | None:
        """Return the release of a message whose provider cannot serve anybody now; None where it can."""
        if isinstance(error, Unavailable):
            seconds = _number(_plain(error.delay), 0, math.inf)
            bounded = None if seconds is None else min(max(seconds, SHORTEST_PAUSE), LONGEST_PAUSE)
            pause = self._options.breaker_seconds if bounded is None else bounded
            return Release(pause, pause, _clean(_words(error)))
        # Whoever steers by hand has seen the answer that caused it.
        asked = asked_pause(error) if self._options.retry_after and not isinstance(error, Steering) else None
        if asked is None:
            return None
        return Release(asked.seconds, asked.seconds, _clean(f"HTTP {asked.status}: {_words(error, _name(error))}"))

    def _charge(self, message: Message, error: BaseException, asked: object = None, *notes: str) -> Outcome:
        kind = "timeout" if isinstance(error, TimeLimit) else "failed"
        seconds = _number(_plain(asked), 0, MAX_DELAY)
        if seconds is None and self._form_for(error) is None:
            return DeadLetter("rejected", _story(error, *notes))
        if message.attempt >= self.max_attempts_for(message):
            return DeadLetter("attempts", _story(error, *notes))
        if seconds is not None:
            return RetryOutcome(seconds, _story(error, *notes), kind)
        wait, trouble = self._wait(message, error)
        text = _story(error, *notes, *trouble)
        return DeadLetter("rejected", text) if wait is None else RetryOutcome(wait, text, kind)

    def _wait(self, message: Message, error: BaseException) -> tuple[float | None, list[str]]:
        """Return the delay by the most specific policy that works, and what was wrong with the others."""
        trouble: list[str] = []
        own, general = self._form_for(error), self._options.retry
        # A callable that fails must not lose the message: the queue's policy takes its place, then the default.
        for form in (own, general, "exponential") if own is not general else (general, "exponential"):
            if form is None:
                return None, trouble
            try:
                delay = self._nominal(form, message.attempt, error)
            except BaseException as broken:
                trouble.append(
                    f"its retry callable failed, so another policy was used: {_words(broken, _name(broken))}"
                )
                continue
            if delay is None:
                return None, trouble
            header = _number(message.headers.get("retry_delay_seconds"), 0, MAX_DELAY)
            return self._with_jitter(delay, form) if header is None else header, trouble
        raise AssertionError("the exponential series cannot fail")

    def _form_for(self, error: BaseException) -> RetryForm | None:
        forms: Mapping[Any, RetryForm | None] = self._options.retry_for
        if not forms:
            return self._options.retry
        kinds: Iterable[Any] = type(error).__mro__
        if origin := getattr(error, ORIGIN_KINDS, None):
            # It stands for an exception of another process, whose classes are known by their names here.
            kinds, forms = origin, {**forms, **{kind_name(kind): form for kind, form in forms.items()}}
        for kind in kinds:
            if kind in forms:
                return forms[kind]
        return forms[Panic] if Panic in forms and is_panic(error) else self._options.retry

    def _nominal(self, form: RetryForm, attempt: int, error: BaseException | None = None) -> float | None:
        return nominal(form, attempt, error, self._options.retry_seconds, self._options.retry_max_seconds)

    def _with_jitter(self, delay: float, form: RetryForm) -> float:
        if not self._options.retry_jitter:
            return delay
        limit = MAX_DELAY if isinstance(form, tuple) else self._options.retry_max_seconds
        return min(delay * (1 + self._options.retry_jitter * random.random()), limit)  # noqa: S311


ORIGIN_KINDS = "__origin_kinds__"
"""Attribute of what stands for an exception of another process: `kind_name` of each of its classes, in MRO order."""


def kind_name(kind: type) -> str:
    """Return the name under which `retry_for` finds an exception class, in whatever process it was raised."""
    return f"{kind.__module__}.{kind.__qualname__}"


def nobody_failed(error: BaseException) -> bool:
    """Whether `error` says nothing about the handler or its message: the lease was lost, or the database is away."""
    if isinstance(error, CallRefused):
        return nobodys_fault(error.sqlstate)
    return isinstance(error, (LeaseLost, TransportUnavailable))


def is_panic(error: BaseException) -> bool:
    """Whether no handler should have raised `error`: MemoryError, or a BaseException such as SystemExit."""
    if origin := getattr(error, ORIGIN_KINDS, None):
        return "builtins.Exception" not in origin or "builtins.MemoryError" in origin
    return not isinstance(error, Exception) or isinstance(error, (MemoryError, Panic))


def _story(error: BaseException, *notes: str) -> str:
    """Return what is stored with the message about `error`: what a person chose to say is told without a traceback."""
    match error:
        case TimeLimit():
            return _clean("\n".join([f"timeout: {_words(error)}", *notes]))
        case Steering() | InvalidPayload():
            return _clean("\n".join([_words(error), *notes]))
    return error_text(error, *notes)


def error_text(error: BaseException, *notes: str) -> str:
    """Return `ValueError: text` and the last frames of the traceback, without secrets and fit to be stored.

    `notes` are lines that stand after the first.
    """
    first = _words(error, _name(error))
    # Masked before it is cut: half a secret is not recognised.
    lines = [redact(first)[: MAX_TEXT // 2], *notes] if notes else [first]
    cause = error.__cause__
    if cause is not None:
        lines.append("caused by " + _words(cause, _name(cause)))
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    lines += [f"  at {'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} in {frame.name}" for frame in frames]
    return _clean("\n".join(lines))


def _name(error: BaseException) -> str:
    return type(error).__name__


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


def _plain(delay: object) -> object:
    return delay.total_seconds() if isinstance(delay, timedelta) else delay
