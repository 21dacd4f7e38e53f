"""What a processor is, what a handler is given, and the registry of an app.

Built-in processors and users' handlers see this module only; what a job can do to the database comes in
through `JobContext`, which the broker implements.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from queue_worker.config import DECORATOR_OPTIONS, check_queue_name
from queue_worker.durations import Duration
from queue_worker.errors import ConfigError, InvalidPayload, UsageError
from queue_worker.ledger import UnknownPolicy, call_once
from queue_worker.message import Message
from queue_worker.sending import payload_of, sql_options

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


class Job(Generic[P]):
    """One run of one message, as its handler sees it.

    Attributes: `queue`, `msg_id`, `attempt` (from 1), `max_attempts`, `payload` (validated), `headers`, and
    `key`: see `Message.key`.
    """

    __slots__ = (
        "_context",
        "_inside",
        "_settled",
        "attempt",
        "headers",
        "max_attempts",
        "message",
        "msg_id",
        "note",
        "payload",
        "queue",
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
        self._context = context
        self._settled = False
        self._inside = False

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
        return self._transaction()

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        with self._context.transaction(self) as transaction:
            self._inside = True
            try:
                yield transaction
            finally:
                self._inside = False

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
        if self._inside:
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


Handler = Callable[[Job[Any]], Any]


@dataclass(slots=True)
class Processor:
    """A handler bound to a queue: `handler(job)` with `job.payload` validated by `model`.

    `options` holds what the decorator set; settings from the environment beat it (see config).
    """

    queue: str
    handler: Handler
    model: Any = dict[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    builtin: bool = False
    close: Callable[[], None] | None = None
    _adapter: TypeAdapter[Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._adapter = TypeAdapter(self.model)

    def parse(self, body: str | bytes | None) -> Any:
        """Validate one payload's JSON text; raises InvalidPayload with the fields that are wrong, not their values."""
        if body is None:
            raise InvalidPayload("the payload is SQL null")
        try:
            return self._adapter.validate_json(body)
        except ValidationError as error:
            raise InvalidPayload(_explain(error)) from None
        except (ValueError, RecursionError) as error:
            raise InvalidPayload(f"the payload cannot be parsed: {type(error).__name__}: {error}") from None


def _explain(error: ValidationError) -> str:
    # include_input=False: the text ends in logs and rows, and a payload may hold secrets.
    parts = []
    for item in error.errors(include_url=False, include_context=False, include_input=False)[:10]:
        where = ".".join(str(step) for step in item["loc"]) or "payload"
        parts.append(f"{where}: {item['msg']}")
    return "; ".join(parts)


class App:
    """The registry of processors that `queue-worker start --app module:app` runs."""

    def __init__(self, *, builtins: bool = True) -> None:
        self.builtins = builtins
        self.processors: dict[str, Processor] = {}

    def processor(self, queue: str, **options: Any) -> Callable[[Handler], Handler]:
        """Register the decorated `handler(job)` for `queue`.

        The payload's model is read from the annotation `job: Job[Model]`; without one the payload must be a JSON
        object and arrives as a dict. Options: see `config.QueueOptions`. Raises ConfigError for a bad queue name,
        an unknown option, a handler of the wrong shape, or a second processor of one queue.
        """
        check_queue_name(queue)
        unknown = sorted(set(options) - set(DECORATOR_OPTIONS))
        if unknown:
            raise ConfigError(
                f"processor {queue!r}: unknown option {unknown[0]!r}; known: {', '.join(DECORATOR_OPTIONS)}"
            )

        def register(handler: Handler) -> Handler:
            self.add(Processor(queue, handler, model_of(handler, queue), options))
            return handler

        return register

    def add(self, processor: Processor) -> None:
        """Register a ready-made processor; raises ConfigError if the queue has one already."""
        if processor.queue in self.processors:
            raise ConfigError(f"queue {processor.queue!r} has two processors; give each its own queue")
        self.processors[processor.queue] = processor


def model_of(handler: Handler, queue: str) -> Any:
    """Return the payload type that `handler(job: Job[Model])` asks for; dict[str, Any] where it asks for none.

    Raises ConfigError for `async def` and for a handler that does not take exactly one job.
    """
    if inspect.iscoroutinefunction(handler):
        raise ConfigError(f"processor {queue!r}: async handlers are not supported by this version; use a plain def")
    parameters = list(inspect.signature(handler).parameters.values())
    if len([p for p in parameters if p.default is p.empty]) != 1:
        raise ConfigError(f"processor {queue!r}: the handler must take exactly one argument, the job")
    try:
        hints = typing.get_type_hints(handler)
    except NameError as error:
        raise ConfigError(f"processor {queue!r}: cannot resolve the handler's annotations: {error}") from None
    hint = hints.get(parameters[0].name)
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Job and arguments and not isinstance(arguments[0], TypeVar):
        return arguments[0]
    return dict[str, Any]
