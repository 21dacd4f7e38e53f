"""The settings of one queue, and how they are found in the layers of configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from queue_worker.config_errors import config_error
from queue_worker.durations import seconds
from queue_worker.errors import ConfigError, UsageError
from queue_worker.retry_forms import RetryForm, longest, parse_form, parse_forms

PREFIX = "QUEUE_WORKER_"
QUEUE_PREFIX = PREFIX + "QUEUES__"

QUEUE_NAME = re.compile(r"(?!.*--)[a-z_][a-z0-9_-]{0,46}\Z")
"""The rule for queue names; pgmq itself allows names that end in one table or cannot be quoted safely."""

PROVIDER_KEY_SECONDS = {"stripe": 86_400.0, "resend": 86_400.0}
"""How long a provider remembers an idempotency key, in seconds (Stripe: at least 24 hours; Resend: 24 hours)."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def check_queue_name(name: str) -> str:
    """Return `name` if it is a valid queue name; raises ConfigError with the rule in one line."""
    if isinstance(name, str) and QUEUE_NAME.match(name):
        return name
    raise ConfigError(
        f"invalid queue name {name!r:.60}: use 1 to 47 of a-z, 0-9, '_' and '-', "
        "beginning with a letter or '_', without '--'"
    )


def fold(queue: str) -> str:
    """Return `queue` as variable names see it: lower case, '-' as '_'."""
    return queue.lower().replace("-", "_")


class QueueOptions(BaseModel):
    """The settings of one queue, all resolved. Times are in seconds unless the name says days."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    batch_size: int = Field(10, ge=1, le=1000, description="Messages claimed in one round trip, at most")
    concurrency: int = Field(5, ge=1, le=1000, description="Handlers that run at the same time in one process")
    cycle_seconds: float = Field(
        5.0, ge=0.01, le=3600, description="Longest pause between two looks at an empty queue, seconds"
    )
    lease_seconds: int = Field(
        60, ge=1, le=43_200, description="How long a claim hides a message from others (visibility timeout), seconds"
    )
    heartbeat_seconds: float = Field(
        20.0,
        gt=0,
        le=14_400,
        description="How often held leases are extended, seconds; at most a third of the lease, which is the default"
        " for leases under 60 s",
    )
    timeout_seconds: float = Field(
        60.0, gt=0, le=86_400, description="Time limit of one run, seconds (email: 30); independent of the lease"
    )
    max_attempts: int = Field(6, ge=1, le=1000, description="Runs before a failing message becomes a dead letter")
    retry: Annotated[RetryForm, PlainValidator(parse_form)] = Field(
        "exponential",
        description="Delays between runs: exponential (doubling), fixed, linear, or a list in seconds such as"
        " 10,60,300 (the last repeats)",
    )
    retry_for: Annotated[Mapping[type[BaseException], RetryForm | None], PlainValidator(parse_forms)] = Field(
        {}, description="In code only: what holds instead of `retry` for single exception classes (None: no retry)"
    )
    retry_after: bool = Field(
        True,
        description="An HTTP error 429 or 503 with Retry-After pauses the queue and costs no attempt (false: it is a"
        " failure like any other)",
    )
    retry_seconds: float = Field(60.0, ge=0, le=31_536_000, description="First delay, seconds; unused with a list")
    retry_max_seconds: float = Field(
        86_400.0, gt=0, le=31_536_000, description="Longest delay, seconds; unused with a list"
    )
    retry_jitter: float = Field(
        0.0, ge=0, le=1, description="Random lengthening of each delay, as a fraction of it (0: none, 0.1: up to 10 %)"
    )
    on_success: Literal["archive", "delete"] = Field("archive", description="What becomes of a message that is done")
    max_lost: int = Field(
        5, ge=1, le=1000, description="Runs that may end with the process before a message becomes a dead letter"
    )
    archive_days: int = Field(
        7, ge=0, le=36_500, description="Days that done messages stay in the archive (payments: 365)"
    )
    failure_days: int = Field(
        30, ge=0, le=36_500, description="Days that the history of failed attempts is kept (0: for ever)"
    )
    dead_days: int = Field(
        0, ge=0, le=36_500, description="Days that dead letters are kept (0: until somebody discards them)"
    )
    results: bool = Field(False, description="Keep what the handler returns, for as long as the archive")
    breaker_failures: int = Field(
        0, ge=0, le=10_000, description="Failures in a row, of one process, after which the queue pauses (0: never)"
    )
    breaker_seconds: float = Field(
        10.0, ge=1, le=86_400, description="How long the queue pauses, and the time between two probes, seconds"
    )


PAYLOAD_OPTIONS = ("unknown_fields", "version_field", "versions")
"""What `@app.processor` accepts about the payload: it belongs to the code of the handler, see `payloads`."""

CODE_OPTIONS = ("retry_for", *PAYLOAD_OPTIONS)
"""What `@app.processor` accepts and no environment can say."""

OPTIONS = tuple(name for name in QueueOptions.model_fields if name not in CODE_OPTIONS)
"""The names of all queue options that every source may set."""

_DECORATOR_NAMES = {
    "cycle": "cycle_seconds",
    "lease": "lease_seconds",
    "heartbeat": "heartbeat_seconds",
    "timeout": "timeout_seconds",
    "retry_max": "retry_max_seconds",
}
_SHORT = {option: name for name, option in _DECORATOR_NAMES.items()}

DECORATOR_OPTIONS = tuple(_SHORT.get(option, option) for option in OPTIONS)
"""The names under which `@app.processor(queue, ...)` accepts them; times are seconds, a timedelta, or a text: `5m`."""

BUILTIN_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"email": {"timeout_seconds": 30.0}, "payments": {"archive_days": 365}}
)
"""What differs from the general defaults for the queues that have a built-in processor."""


_OPTION_OF = {"only": "queues"}
"""Settings whose option of the command line has another name."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What one source of configuration says, as raw values.

    `values` is by field of `Settings`, `options` by queue option, `queues` by folded queue name and option.
    """

    source: str
    values: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    queues: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def name(self, text: str) -> str:
        """Return the variable `text` as this layer's users write it, with the file it stands in."""
        if self.source == "command line":
            name = text.removeprefix(PREFIX).lower().replace("_", "-")
            return "--" + _OPTION_OF.get(name, name)
        return text if self.source == "environment" else f"{text} (in {self.source})"

    def for_queue(self, queue: str) -> Iterator[tuple[str, Any, str]]:
        """Yield (option, raw value, label) for `queue`, what is set for that queue alone first."""
        folded = fold(queue)
        for option, raw in self.queues.get(folded, _NOTHING).items():
            yield option, raw, self.name(f"{QUEUE_PREFIX}{folded.upper()}__{option.upper()}")
        for option, raw in self.options.items():
            yield option, raw, self.name(PREFIX + option.upper())


def resolve(queue: str, layers: Sequence[Layer], decorator: Mapping[str, Any] = _NOTHING) -> QueueOptions:
    """Return the options of `queue`: the first layer that names one wins, then the decorator, then defaults.

    Raises ConfigError naming the variable or decorator option that is wrong or contradicts another one.
    """
    chosen: dict[str, Any] = {}
    labels: dict[str, str] = {}
    for layer in layers:
        for option, raw, label in layer.for_queue(queue):
            if option not in chosen:
                chosen[option], labels[option] = raw, label
    for name, raw in decorator.items():
        option = check_option(queue, name)
        if option in PAYLOAD_OPTIONS:
            continue
        if option not in chosen and raw is not None:
            labels[option] = f"processor {queue!r}: {name}"
            chosen[option] = _in_seconds(raw, labels[option]) if option.endswith("_seconds") else raw
    heartbeat_chosen = "heartbeat_seconds" in chosen
    try:
        options = QueueOptions.model_validate({**BUILTIN_DEFAULTS.get(queue, _NOTHING), **chosen})
    except ValidationError as error:
        raise config_error(error, QueueOptions, lambda name: labels.get(name, name)) from None
    third = options.lease_seconds / 3
    if options.heartbeat_seconds <= third:
        return options
    if not heartbeat_chosen:
        return options.model_copy(update={"heartbeat_seconds": third})
    raise ConfigError(
        f"{labels['heartbeat_seconds']} must be at most a third of the lease: "
        f"{options.heartbeat_seconds:g} s for a lease of {options.lease_seconds} s (queue {queue!r})"
    )


def _in_seconds(raw: Any, label: str) -> Any:
    """Return a time that code wrote as a text or timedelta in seconds; anything else as it is."""
    if not isinstance(raw, (str, timedelta)):
        return raw
    try:
        return seconds(raw, label)
    except UsageError as error:
        raise ConfigError(str(error)) from None


def check_option(queue: str, name: str) -> str:
    """Return the option that the decorator's `name` means; raises ConfigError for an unknown one."""
    known = (*DECORATOR_OPTIONS, *CODE_OPTIONS)
    if name in known:
        return _DECORATOR_NAMES.get(name, name)
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else "known: " + ", ".join(known)
    raise ConfigError(f"processor {queue!r}: unknown option {name!r}; {hint}")


def retry_horizon(options: QueueOptions) -> float:
    """Return the longest time between the first and the last run of a message, in seconds.

    After each run the longest delay of any of its retry policies, with full jitter, plus one lease for each run.
    """
    first, limit, jitter = options.retry_seconds, options.retry_max_seconds, options.retry_jitter
    forms = (options.retry, *options.retry_for.values())
    delays = (
        max(longest(form, attempt, first, limit, jitter) for form in forms)
        for attempt in range(1, options.max_attempts)
    )
    return sum(delays) + options.max_attempts * options.lease_seconds
