"""What a processor is, and the registry of an app.

Built-in processors and users' handlers see this module only; what a job can do to the database comes in
through `JobContext`, which the broker implements.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from queue_worker.config import check_option, check_queue_name
from queue_worker.errors import ConfigError
from queue_worker.job import Job, JobContext, Progress, Transaction
from queue_worker.payloads import Payloads
from queue_worker.schedule_definition import Scheduling

__all__ = [
    "BUILTINS",
    "App",
    "ErrorCallback",
    "Handler",
    "Isolation",
    "Job",
    "JobContext",
    "Processor",
    "Progress",
    "Transaction",
    "check_callback",
    "model_of",
]

BUILTINS = ("email", "reports", "payments")
"""The queues that have a built-in processor."""


Handler = Callable[[Any], Any]


Isolation = Literal["thread", "process"]

ErrorCallback = Callable[[Job[Any], Exception], Any]
"""What `App.on_error` registers: (job, error) -> Retry | Reject | Unavailable | None."""


@dataclass(slots=True)
class Processor:
    """A handler bound to a queue: `handler(job)` with `job.payload` validated by `model`.

    `options` holds what the decorator set; settings from the environment beat it (see config). `batch`: the handler
    takes a list of jobs. `isolation`: where it runs, in this process or in a child of it. `ordered`: its queue is to
    keep the order of each group.
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
    ordered: bool = False
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
        self,
        queue: str,
        *,
        batch: bool = False,
        isolation: Isolation = "thread",
        ordered: bool = False,
        **options: Any,
    ) -> Callable[[Handler], Handler]:
        """Register the decorated `handler(job)` for `queue`; it may be `async def`.

        `batch`: the handler takes a list of jobs. `isolation="process"`: it runs in a child process, which a time limit
        or a cancel can kill. `ordered`: the worker makes its queue one that keeps the order of each group.

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
            made = Processor(queue, handler, model, options, batch=batch, isolation=isolation, ordered=ordered)
            self.add(made)
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
