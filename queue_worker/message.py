"""A message as the worker holds it, and the outcomes it can have.

A receipt is the proof of a lease: `(msg_id, read_ct, enqueued_at)`. `read_ct` grows with every claim and
every settle, so an old receipt never matches again; `enqueued_at` tells apart two messages with one id in
a queue that was dropped and made again. The third part is opaque: binary on psycopg, text on REST.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

MAX_TEXT = 4096
"""Longest error or reason that is stored, in characters."""

MAX_DELAY = 365 * 86_400.0
"""Longest delay of an outcome, in seconds."""

# NUL cannot be stored in text, lone surrogates cannot be encoded: either would make the settle itself fail.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def clean_text(text: str) -> str:
    """Return `text` so that Postgres can store it: no NUL, no lone surrogates, at most `MAX_TEXT` characters."""
    text = _UNSTORABLE.sub("�", text)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _clamp(delay: float) -> float:
    # NaN compares false with everything, so it lands on 0 here instead of reaching SQL.
    return min(delay, MAX_DELAY) if delay > 0 else 0.0


class Receipt(NamedTuple):
    """What settles or extends a message; see the module's docstring."""

    msg_id: int
    read_ct: int
    enqueued_at: Any


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FROM_2000 = 946_684_800_000_000


def _microseconds(stamp: Any) -> int:
    """Return an opaque timestamp as microseconds since 1970, as SQL `redrive` counts them."""
    if isinstance(stamp, bytes):
        return int.from_bytes(stamp, "big", signed=True) + _FROM_2000
    return (datetime.fromisoformat(str(stamp)) - _EPOCH) // timedelta(microseconds=1)


@dataclass(slots=True)
class Message:
    """One claimed message.

    `body` is the JSON text of the payload (None: SQL null), parsed for each message alone. `failures` counts
    charged attempts so far; `lost` counts starts that ended without a recorded outcome. `expired`: its `expires_at` has
    passed, so it must not run. `probe`: it is the trial of an open breaker. `trace`: see `tracing.claimed`.
    """

    queue: str
    receipt: Receipt
    body: str | bytes | None
    headers: dict[str, Any] = field(default_factory=dict)
    failures: int = 0
    lost: int = 0
    expired: bool = False
    probe: bool = False
    trace: Any = field(default=None, repr=False, compare=False)

    @property
    def attempt(self) -> int:
        """The attempt that runs now, from 1."""
        return self.failures + 1

    @property
    def key(self) -> str:
        """A name of the work that stays the same over retries and redrives, for ledgers and idempotency keys.

        The moment of the enqueue is part of it: a queue that was dropped and made again counts its ids from 1.
        """
        given = self.headers.get("key")
        if isinstance(given, str) and given:
            return given
        name = f"{self.queue}:{self.receipt.msg_id}"
        stamp = self.receipt.enqueued_at
        # A message made by hand, for a test of a handler, was never enqueued.
        return name if stamp is None else f"{name}:{_microseconds(stamp)}"

    @property
    def counted(self) -> bool:
        """Whether the message is one of a batch that something follows."""
        return "batch" in self.headers

    @property
    def suspect(self) -> bool:
        """Whether an earlier start of this message ended without a recorded outcome."""
        return self.lost > 0


@dataclass(frozen=True, slots=True)
class Ack:
    """The message is done: archived or deleted, as the queue says.

    `result` is the JSON text of what the handler returned, where the queue keeps results.
    """

    result: str | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempt failed and is charged; the message is due again after `delay` seconds.

    `kind` is `failed` or `timeout`.
    """

    delay: float
    error: str
    kind: str = "failed"

    def __post_init__(self) -> None:
        object.__setattr__(self, "delay", _clamp(self.delay))
        object.__setattr__(self, "error", clean_text(self.error))


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The message leaves the queue for the dead letters, with `reason` (one word) and `error` (the details)."""

    reason: str
    error: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", clean_text(self.reason))
        object.__setattr__(self, "error", clean_text(self.error))


@dataclass(frozen=True, slots=True)
class Release:
    """The message goes back unharmed, due after `delay` seconds; no attempt is charged.

    `pause`: the provider behind the queue is down, so the queue pauses for as many seconds, because of `reason`.
    """

    delay: float = 0.0
    pause: float | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "delay", _clamp(self.delay))
        object.__setattr__(self, "reason", clean_text(self.reason))
        if self.pause is not None:
            object.__setattr__(self, "pause", _clamp(self.pause))


Outcome = Ack | Retry | DeadLetter | Release

ACK = Ack()
"""The one instance the hot path uses."""


def expired(message: Message) -> DeadLetter:
    """Return what becomes of a message whose `expires_at` has passed before it ran."""
    return DeadLetter("expired", f"not run before {message.headers.get('expires_at')}")


def in_order(messages: list[Message]) -> list[Message]:
    """Return what one claim has brought, in the order in which it is to start: priority, then age.

    Messages of one group stay in their order, whatever their own priority, and count with that of the first.
    """
    found = sorted(messages, key=lambda message: message.receipt.msg_id)
    if not any("priority" in message.headers for message in found):
        return found
    groups: dict[str, float] = {}

    def place(message: Message) -> float:
        own, group = -_priority(message.headers), message.headers.get("group_key")
        return own if group is None else groups.setdefault(str(group), own)

    return sorted(found, key=place)


def _priority(headers: dict[str, Any]) -> float:
    # As `priority_expression` of sql/0008_queues.sql reads it: anybody may have written the headers.
    given = headers.get("priority")
    return min(max(given, 0), 100) if isinstance(given, int | float) and not isinstance(given, bool) else 0
