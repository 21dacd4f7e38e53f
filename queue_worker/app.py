"""The public `App`: the registry of processors, whose handlers are producers too, and which runs in any program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, Unpack, cast, overload

from pydantic import BaseModel

from queue_worker import processor as registry
from queue_worker.client import Queue
from queue_worker.durations import Duration
from queue_worker.errors import ConfigError, UsageError
from queue_worker.processor import Handler, Job, Processor
from queue_worker.sending import (
    Outgoing,
    SendOptions,
    UniqueMode,
    UniqueScope,
    fingerprint,
    json_text,
    payload_of,
    sql_options,
    to_json_data,
)
from queue_worker.source import Source

if TYPE_CHECKING:
    from queue_worker.embedding import Running
    from queue_worker.transport.sharing import AnyPool

P = TypeVar("P")


class Producer(Generic[P]):
    """A decorated handler: still the function when it is called, and the typed producer of its queue.

    Attributes: `queue`, the `Queue` with `result`, `wait` and `fetch`; `handler`, the function itself;
    `processor`, what it was registered as.
    """

    def __init__(
        self, handler: Callable[..., Any], queue: Queue, processor: Processor, defaults: Mapping[str, Any]
    ) -> None:
        functools.update_wrapper(self, handler)
        self.handler = handler
        self._name: str = getattr(handler, "__qualname__", type(handler).__qualname__)
        self.queue = queue
        self.processor = processor
        self._unique = defaults["unique"]
        self._unique_by = _json_names(processor, defaults["unique_by"])
        self._defaults = {name: defaults[name] for name in SendOptions.__annotations__ if name in defaults}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the handler, as a plain function."""
        return self.handler(*args, **kwargs)

    def __reduce__(self) -> str:
        # Pickled as the name that a module has it under, so that it can be handed to a process of its own.
        return self._name

    def __repr__(self) -> str:
        return f"<producer {self._name} of queue {self.queue.name!r}>"

    def send(self, payload: P | Mapping[str, Any], *, connection: Any = None, **options: Unpack[SendOptions]) -> int:
        """Send one message and return its id; see `Queue.send`. The payload must fit the handler's model.

        `options` beat those of the decorator.
        """
        return self.queue.send(payload, connection=connection, **self._options(payload, options))

    async def asend(
        self, payload: P | Mapping[str, Any], *, connection: Any = None, **options: Unpack[SendOptions]
    ) -> int:
        """Send one message from a coroutine; see `Queue.asend`."""
        return await self.queue.asend(payload, connection=connection, **self._options(payload, options))

    def send_batch(
        self,
        payloads: Sequence[P | Mapping[str, Any] | Outgoing],
        *,
        then: tuple[str, Any] | None = None,
        connection: Any = None,
        **options: Unpack[SendOptions],
    ) -> list[int]:
        """Send many messages in one transaction and return their ids in the same order; see `Queue.send_batch`."""
        items = []
        for one in payloads:
            payload, own = (one.payload, one.options) if isinstance(one, Outgoing) else (one, {})
            items.append(Outgoing(payload, **self._options(payload, {**options, **own})))
        return self.queue.send_batch(items, then=then, connection=connection)

    def _options(self, payload: Any, given: Mapping[str, Any]) -> SendOptions:
        """Return the options of one message: those of the decorator below those of the call."""
        said = {name: value for name, value in given.items() if value is not None}
        defaults = dict(self._defaults)
        if "expires_at" in said:
            defaults.pop("expires_in", None)
        if "unique_key" not in said and (self._unique or self._unique_by):
            defaults["unique_key"] = self._unique_key(payload)
        return cast("SendOptions", {**defaults, **said})

    def _unique_key(self, payload: Any) -> str:
        # As the handler will see it: the same arguments are the same key, written as a dict or as a model.
        data = to_json_data(self.processor.parse(json_text(payload_of(payload, self.processor.parse), "")), "")
        if self._unique_by:
            data = {name: data.get(name) for name in self._unique_by}
        return fingerprint(data, "the payload")


def _json_names(processor: Processor, fields: Sequence[str]) -> tuple[str, ...]:
    """Return the names that `fields` of the model have in JSON; raises ConfigError for one that it has not."""
    model = processor.model
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return tuple(fields)
    names = []
    for name in fields:
        found = model.model_fields.get(name)
        if found is None:
            known = ", ".join(model.model_fields)
            raise ConfigError(f"processor {processor.queue!r}: unique_by {name!r} is no field of its model: {known}")
        names.append(found.serialization_alias or name)
    return tuple(names)


class _Decorator(Protocol):
    @overload
    def __call__(self, handler: Callable[[Job[P]], Any], /) -> Producer[P]: ...
    @overload
    def __call__(self, handler: Callable[..., Any], /) -> Producer[Any]: ...


class App(registry.App):
    """The registry of processors that `queue-worker start --app module:app` runs, or `running()` in any program.

    `builtins`: run email, reports and payments too. `database`: where its producers send; a URL or a
    `psycopg_pool.ConnectionPool` (None: what the settings say, inside `running()` the settings of that).
    """

    def __init__(self, *, builtins: bool = True, database: str | AnyPool | None = None) -> None:
        super().__init__(builtins=builtins)
        self._url = database if isinstance(database, str) else None
        self._source = Source(database)

    def queue(self, name: str) -> Queue:
        """Return a queue of this app's database; its payloads are checked where the app has a processor for it."""
        return Queue(name, database=self._source, processor=self.processors.get(name))

    def processor(
        self,
        queue: str,
        *,
        priority: int | None = None,
        unique: bool = False,
        unique_by: Sequence[str] = (),
        unique_mode: UniqueMode | None = None,
        unique_scope: UniqueScope | None = None,
        unique_for: Duration | None = None,
        expires_in: Duration | None = None,
        **options: Any,
    ) -> _Decorator:
        """Register the decorated `handler(job)` for `queue`; what it becomes is a `Producer` of that queue.

        The payload's model is read from the annotation `job: Job[Model]`; without one the payload must be a JSON
        object and arrives as a dict. `priority`, `expires_in` and the `unique...` options are what its producer sends
        with: `unique` makes one message for equal payloads, `unique_by` for equal values of these fields. `options`:
        see `config.QueueOptions`. Raises ConfigError for a bad queue name, an unknown option, a handler of the wrong
        shape, or a second processor of one queue.
        """
        if isinstance(unique_by, str):
            raise ConfigError(f"processor {queue!r}: unique_by takes names of fields, as ({unique_by!r},)")
        defaults = {
            "priority": priority,
            "unique_mode": unique_mode,
            "unique_scope": unique_scope,
            "unique_for": unique_for,
            "expires_in": expires_in,
        }
        defaults = {name: value for name, value in defaults.items() if value is not None}
        try:
            sql_options(defaults)
        except UsageError as error:
            raise ConfigError(f"processor {queue!r}: {error}") from None
        if not (unique or unique_by) and any(name.startswith("unique_") for name in defaults):
            raise ConfigError(f"processor {queue!r}: unique_mode, unique_scope and unique_for need unique or unique_by")
        register = super().processor(queue, **options)

        def decorate(handler: Handler) -> Producer[Any]:
            function = handler.handler if isinstance(handler, Producer) else handler
            register(function)
            made = self.processors[queue]
            kept = {**defaults, "unique": unique, "unique_by": tuple(unique_by)}
            return Producer(function, Queue(queue, database=self._source, processor=made), made, kept)

        return cast("_Decorator", decorate)

    def running(self, *, env_file: Path | None = None, ready_timeout: Duration = 30, **settings: Any) -> Running:
        """Run this app's worker inside this program: `with app.running():` or `async with app.running():`.

        `settings` are those of `queue-worker config` by field name or queue option, such as `database_url`,
        `concurrency` or `only`; environment and `.env` (`env_file`) below them. See `Running`.
        """
        # Here, because a program that only sends does not load the worker.
        from queue_worker.embedding import Running

        if self._url is not None:
            settings = {"database_url": self._url, **settings}
        return Running(self, self._source, settings, env_file, ready_timeout)
