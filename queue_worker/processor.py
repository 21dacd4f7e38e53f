"""What a processor is, what a handler is given, and the registry of an app.

Built-in processors and users' handlers see this module only; what a job can do to the database comes in
through `JobContext`, which the broker implements.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from queue_worker.config import check_option, check_queue_name
from queue_worker.errors import ConfigError, LeaseLost, Reject, Retry, UsageError
from queue_worker.message import Message, clean_text
from queue_worker.payloads import Payloads
from queue_worker.schedule_definition import Scheduling

P = TypeVar("P")

BUILTINS = ("email", "reports", "payments")
"""The queues that have a built-in processor."""


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

    def send(self, queue: str, payload: Any, **options: Any) -> int:
        """Send a message to `queue` and return its id; `options` are those of SQL `queue_worker.send`."""
        return self._context.send(queue, payload, options)

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


Handler = Callable[[Any], Any]


Isolation = Literal["thread", "process"]

ErrorCallback = Callable[[Job[Any], Exception], Any]
"""What `App.on_error` registers: (job, error) -> Retry | Reject | Unavailable | None."""


@dataclass(slots=True)
class Processor:
    """A handler bound to a queue: `handler(job)` with `job.payload` validated by `model`.

    `options` holds what the decorator set; settings from the environment beat it (see config). `batch`: the handler
    takes a list of jobs. `isolation`: where it runs, in this process or in a child of it.
    """

    queue: str
    handler: Handler
    model: Any = dict[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    builtin: bool = False
    close: Callable[[], None] | None = None
    error_callbacks: Sequence[ErrorCallback] = ()
    batch: bool = False
    isolation: Isolation = "thread"
    _payloads: Payloads = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._payloads = Payloads(self.queue, self.model, self.options)
        if self.isolation not in ("thread", "process"):
            raise ConfigError(f"processor {self.queue!r}: isolation must be 'thread' or 'process'")
        if self.batch and self.isolation == "process":
            raise ConfigError(f"processor {self.queue!r}: batch=True and isolation='process' do not go together")

    @property
    def is_async(self) -> bool:
        """Whether the handler is `async def`."""
        return inspect.iscoroutinefunction(self.handler)

    def parse(self, body: str | bytes | None) -> Any:
        """Validate one payload's JSON text; raises InvalidPayload with the fields that are wrong, not their values."""
        return self._payloads.parse(body)


class App(Scheduling):
    """The registry of processors and schedules that `queue-worker start --app module:app` runs."""

    def __init__(self, *, builtins: bool = True) -> None:
        super().__init__()
        self.builtins = builtins
        self.processors: dict[str, Processor] = {}
        self.error_callbacks: list[ErrorCallback] = []

    def processor(
        self, queue: str, *, batch: bool = False, isolation: Isolation = "thread", **options: Any
    ) -> Callable[[Handler], Handler]:
        """Register the decorated `handler(job)` for `queue`; it may be `async def`.

        `batch`: the handler takes a list of jobs. `isolation="process"`: it runs in a child process, which a time limit
        or a cancel can kill.

        The payload's model is read from the annotation `job: Job[Model]`; without one the payload must be a JSON
        object and arrives as a dict. Options: see `config.QueueOptions` and `payloads.Payloads`. Raises
        ConfigError for a bad queue name, an unknown option, a handler of the wrong shape, or a second processor of one
        queue.
        """
        check_queue_name(queue)
        for name in sorted(options):
            check_option(queue, name)

        def register(handler: Handler) -> Handler:
            model = model_of(handler, queue, batch=batch)
            self.add(Processor(queue, handler, model, options, batch=batch, isolation=isolation))
            return handler

        return register

    def add(self, processor: Processor) -> None:
        """Register a ready-made processor; raises ConfigError if the queue has one already."""
        if processor.queue in self.processors:
            raise ConfigError(f"queue {processor.queue!r} has two processors; give each its own queue")
        processor.error_callbacks = self.error_callbacks
        self.processors[processor.queue] = processor

    def on_error(self, callback: ErrorCallback) -> ErrorCallback:
        """Register `callback(job, error)`, which is told of every failure and may say what becomes of the message.

        It returns Retry, Reject or Unavailable (raising one is the same), or None for no opinion. Several are asked in
        the order of registration, and the first answer counts. `job.payload` is None where the payload is invalid; a
        MemoryError, a BaseException or a dead child process comes as `errors.Panic`. Not told: what costs no attempt
        because the database or the lease went away. An exception of its own is logged and counts as no answer.
        Raises ConfigError unless it is a plain function of two arguments.
        """
        check_callback(callback)
        self.error_callbacks.append(callback)
        return callback


def check_callback(callback: ErrorCallback) -> None:
    """Raise ConfigError unless `callback` can be called as `(job, error)`."""
    if inspect.iscoroutinefunction(callback):
        raise ConfigError("on_error: async callbacks are not supported; use a plain def")
    try:
        inspect.signature(callback).bind(None, None)
    except TypeError:
        raise ConfigError("on_error: the callback must take two arguments, the job and the error") from None


def model_of(handler: Handler, queue: str, *, batch: bool = False) -> Any:
    """Return the payload type that `handler(job: Job[Model])` asks for; dict[str, Any] where it asks for none.

    `batch`: the handler is `handler(jobs: list[Job[Model]])`. Raises ConfigError for a handler that does not take
    exactly one argument, and for an annotation of the other kind.
    """
    parameters = list(inspect.signature(handler).parameters.values())
    if len([p for p in parameters if p.default is p.empty]) != 1:
        raise ConfigError(f"processor {queue!r}: the handler must take exactly one argument, the job")
    try:
        hints = typing.get_type_hints(handler, include_extras=True)
    except NameError as error:
        raise ConfigError(f"processor {queue!r}: cannot resolve the handler's annotations: {error}") from None
    hint = hints.get(parameters[0].name)
    is_list = typing.get_origin(hint) in (list, Sequence)
    if is_list and not batch:
        raise ConfigError(f"processor {queue!r}: the handler takes a list of jobs; say batch=True")
    if batch and not is_list and (hint is Job or typing.get_origin(hint) is Job):
        raise ConfigError(f"processor {queue!r}: with batch=True the handler takes a list: jobs: list[Job[...]]")
    if is_list:
        hint = next(iter(typing.get_args(hint)), None)
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Job and arguments and not isinstance(arguments[0], TypeVar):
        return arguments[0]
    return dict[str, Any]
