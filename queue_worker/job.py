"""What a handler is given: one run of one message, and what it can do to the database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from pydantic_core import from_json

from queue_worker.durations import Duration
from queue_worker.errors import LeaseLost, Reject, Retry, UsageError
from queue_worker.ledger import UnknownPolicy, call_once
from queue_worker.message import Message, clean_text
from queue_worker.sending import payload_of, sql_options

P = TypeVar("P")


class Transaction(Protocol):
    """An open database transaction that ends with the message settled as done."""

    def execute(self, query: Any, params: Any = None) -> Any:
        """Run one statement; returns a psycopg cursor (`fetchone`, `fetchall`, iteration)."""

    def call(self, function: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Call one SQL function by its (schema-qualified) name with named arguments; returns its rows."""


class JobContext(Protocol):
    """What a job can do to the database; see the methods of `Job` for the meaning."""

    def call(self, function: str, params: Mapping[str, Any]) -> list[dict[str, Any]]: ...

    def transaction(self, job: Job[Any]) -> AbstractContextManager[Transaction]: ...

    def finish(self, job: Job[Any], calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[dict[str, Any]]]: ...

    def send(self, queue: str, payload: Any, options: Mapping[str, Any]) -> int: ...

    def cancelled(self, job: Job[Any]) -> bool: ...


class Progress(NamedTuple):
    """How far a run is, as its handler says; `total` may be unknown."""

    done: float
    total: float | None
    note: str


_LONGEST_EXTENSION = 86_400.0
_LONGEST_NOTE = 200


class Job(Generic[P]):
    """One run of one message, as its handler sees it.

    Attributes: `queue`, `msg_id`, `attempt` (from 1), `max_attempts`, `payload` (validated), `headers`, and
    `key`: see `Message.key`.
    """

    __slots__ = (
        "_context",
        "_decide",
        "_settled",
        "attempt",
        "extra_seconds",
        "headers",
        "in_transaction",
        "max_attempts",
        "message",
        "msg_id",
        "note",
        "payload",
        "queue",
        "reported",
    )

    def __init__(self, message: Message, payload: P, max_attempts: int, context: JobContext) -> None:
        self.message = message
        self.queue = message.queue
        self.msg_id = message.receipt.msg_id
        self.attempt = message.failures + 1
        self.max_attempts = max_attempts
        self.payload = payload
        self.headers = message.headers
        self.note: dict[str, Any] = {}
        # For the engine: time that extend() has added, whether transaction() is open, what progress() said last.
        self.extra_seconds = 0.0
        self.in_transaction = False
        self.reported: Progress | None = None
        self._context = context
        self._decide: Callable[[BaseException | None, Any], None] | None = None
        self._settled = False

    @property
    def key(self) -> str:
        """A name of the work that stays the same over retries and redrives, for ledgers and idempotency keys."""
        return self.message.key

    def call(self, function: str, /, **params: Any) -> list[dict[str, Any]]:
        """Call one SQL function in a transaction of its own and return its rows as dictionaries.

        Raises TransportUnavailable (the message is then given back uncharged) or CallRefused (an error of SQL).
        """
        return self._context.call(function, params)

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Open the transaction in which the handler's rows and the ack commit together.

        Raises LeaseLost on entry, before anything is written, when the message belongs to another worker, and
        on exit when it was lost meanwhile; then nothing of the block is kept. The block must be short, and the
        last thing that the handler does: after it the message is done.
        """
        return self._context.transaction(self)

    def finish(self, function: str, /, **params: Any) -> list[dict[str, Any]]:
        """Call one SQL function and settle this message as done, in one transaction; returns the function's rows.

        What `transaction()` does, for every transport: it works over REST too. The function runs with the worker's
        rights; over REST it must have been registered by SQL `queue_worker.allow_function('schema.name')`. It must be
        the last thing that the handler does. Raises LeaseLost where the message belongs to another worker (nothing was
        called), CallRefused for an error of SQL (nothing was kept), TransportUnavailable, and UsageError inside
        `transaction()`.
        """
        return self.finish_all([(function, params)])[0]

    def finish_all(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[dict[str, Any]]]:
        """Like `finish`, with several functions one after the other; returns the rows of each."""
        if self.in_transaction:
            raise UsageError("finish: it is a transaction of its own, call it outside job.transaction()")
        return self._context.finish(self, calls)

    def once(
        self,
        key: str,
        fn: Callable[..., Any],
        /,
        *args: Any,
        unknown: UnknownPolicy = "raise",
        within: Duration = "2 minutes",
    ) -> Any:
        """Call `fn(key, *args)`, an outside call, unless the ledger says that it is done; returns its value as JSON.

        `key` names the call over all messages and runs, so put the business id in it (`order:7:charge`); `fn` gives it
        to the provider as idempotency key. It is recorded before the call and after it: `done` is never called again,
        an exception of `fn` means that it did not take place and the next run calls again. Where a run died over the
        call, or `fn` raised OutcomeUnknown, nobody knows: with `unknown="raise"` a person must look (dead letter), with
        `"retry"` it is called again under the same key, for providers that drop repeats. `args` are JSON data. `within`
        is how long the call may take: so long another message with the same key stands back (Retry).

        Raises KeyReuse where the key was used with other `args` (without `args`: for another payload), OutcomeUnknown,
        CallUnderWay, UsageError inside `transaction()`, and what `fn` raises.
        """
        if self.in_transaction:
            raise UsageError("once: call it before job.transaction(), the reservation must commit before the call")
        compared = list(args) if args else from_json(self.message.body or "null")
        # An earlier run of this very message is over: its lease has ended.
        return call_once(self._context.call, self.key, key, fn, args, compared, unknown, within)

    def send(self, queue: str, payload: Any, **options: Any) -> int:
        """Send a message to `queue` and return its id.

        `payload`: a dict, a pydantic model or a dataclass. `options`: see `sending.SendOptions`; the names of SQL
        `queue_worker.send` (`delay_seconds=60`) work too. Inside `transaction()` the message commits together with it.
        Raises UsageError.
        """
        return self._context.send(queue, payload_of(payload), sql_options(options))

    @property
    def cancelled(self) -> bool:
        """Whether the run has lost its message (lease lost, time limit, shutdown): stop as soon as you can."""
        return self._context.cancelled(self)

    @property
    def settled(self) -> bool:
        """Whether `transaction()` has settled the message already."""
        return self._settled

    def mark_settled(self) -> None:
        """For the broker: the transaction that settles this message has committed."""
        self._settled = True

    def annotate(self, **fields: Any) -> None:
        """Add fields to the log line that ends this run (already masked; never a payload or a secret)."""
        self.note.update(fields)

    def extend(self, seconds: float) -> None:
        """Give this run `seconds` more before its time limit; the lease is kept all the time that it runs.

        Raises LeaseLost when the run has lost its message (see `cancelled`), ValueError for less than 0.
        """
        if not 0 <= seconds <= _LONGEST_EXTENSION:
            raise ValueError(f"extend: 0 to {_LONGEST_EXTENSION:g} seconds, not {seconds!r}")
        if self.cancelled:
            raise LeaseLost(f"message {self.msg_id} of queue {self.queue!r} is not this run's any more")
        self.extra_seconds += seconds

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Show how far this run is, in any unit; costs nothing, because it is written now and then by another thread.

        `status`, `show` and the view `queue_worker.progress` have it while the message runs.
        """
        self.reported = Progress(float(done), None if total is None else float(total), clean_text(note)[:_LONGEST_NOTE])

    # ------------------------------------------------------------------------------------------ batch handlers alone

    def ack(self, result: Any = None) -> None:
        """In a batch handler: this message is done. The first decision about a message counts."""
        self._settle(None, result)

    def retry(self, reason: str = "retry requested", *, delay: float | None = None) -> None:
        """In a batch handler: run this message again after `delay` seconds (None: the retry policy); charged."""
        self._settle(Retry(reason, delay=delay))

    def reject(self, reason: str) -> None:
        """In a batch handler: make this message a dead letter at once, with `reason`."""
        self._settle(Reject(reason))

    def fail(self, error: BaseException) -> None:
        """In a batch handler: treat this message as if a handler of it alone had raised `error`."""
        self._settle(error)

    def _settle(self, error: BaseException | None, result: Any = None) -> None:
        if self._decide is None:
            raise UsageError("ack, retry, reject and fail are for batch handlers; return, or raise Retry or Reject")
        self._decide(error, result)

    def decided_by(self, decide: Callable[[BaseException | None, Any], None]) -> None:
        """For the engine: `decide(error, result)` takes what a batch handler says about this message."""
        self._decide = decide
