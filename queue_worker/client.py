"""`Queue`: what a program that is no worker does with a queue: send, wait for results, fetch in a loop of its own."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from queue_worker import tracing
from queue_worker.config import check_queue_name
from queue_worker.durations import Duration, seconds, whole_seconds
from queue_worker.errors import CallRefused, JobFailed, QueueNotFound, UsageError
from queue_worker.ledger import UnknownPolicy, call_once
from queue_worker.processor import Processor
from queue_worker.schema_name import renamed
from queue_worker.sending import Outgoing, SendOptions, payload_of, sql_options, to_json_data
from queue_worker.source import Source, mistake
from queue_worker.sqlstates import UNDEFINED_TABLE
from queue_worker.transport import JsonArray, Rows

if TYPE_CHECKING:
    from queue_worker.fetched import Fetched, Fetcher
    from queue_worker.transport.sharing import AnyPool

_SHORTEST_LOOK, _LONGEST_LOOK = 0.05, 1.0
"""Pauses between two looks for a result, in seconds: growing, so that a long wait costs little."""


class Queue:
    """One queue, as producers and loops of their own use it; cheap to make, safe for threads, opens nothing itself.

    `database`: None for what the settings say (environment and `.env`), a Postgres URL, or the host program's own
    `psycopg_pool.ConnectionPool`. `model`: the type of the payloads, checked when sending and made when fetching.
    Raises ConfigError for a name that no queue can have.
    """

    def __init__(
        self,
        name: str,
        *,
        database: str | AnyPool | Source | None = None,
        model: Any = None,
        processor: Processor | None = None,
    ) -> None:
        self.name = check_queue_name(name)
        self.source = database if isinstance(database, Source) else Source(database)
        if processor is None and model is not None:
            processor = Processor(name, _never_run, model)
        self._check = None if processor is None else processor.parse
        self._reader = processor or Processor(name, _never_run, Any)
        self._fetcher: Fetcher | None = None

    def send(self, payload: Any, *, connection: Any = None, **options: Unpack[SendOptions]) -> int:
        """Send one message and return its id.

        `payload`: a dict, a pydantic model or a dataclass. `options`: see `SendOptions`; durations are seconds, a
        timedelta or a text such as '10 minutes'. `connection`: your own psycopg connection, or a Session or Connection
        of SQLAlchemy; the message then commits or rolls back with your rows. Raises UsageError, QueueNotFound,
        SchemaError, CallRefused, or TransportUnavailable (the message may have been sent).
        """
        message = self._message(payload, options)
        with tracing.sending(self.name) as carrier:
            return _one_id(self.source.call("send", tracing.carry(message, carrier), connection))

    async def asend(self, payload: Any, *, connection: Any = None, **options: Unpack[SendOptions]) -> int:
        """Send one message from a coroutine; see `send`. `connection`: a psycopg AsyncConnection of yours."""
        if connection is None:
            return await asyncio.to_thread(self.send, payload, **options)
        from queue_worker.transport.sharing import call_in_async

        message = self._message(payload, options)
        try:
            with tracing.sending(self.name) as carrier:
                sent = tracing.carry(message, carrier)
                return _one_id(await call_in_async(connection, "queue_worker.send", sent))
        except CallRefused as error:
            raise mistake(error) from None

    def send_batch(
        self,
        messages: Iterable[Any],
        *,
        then: tuple[str, Any] | None = None,
        connection: Any = None,
        **options: Unpack[SendOptions],
    ) -> list[int]:
        """Send many messages in one transaction and return their ids in the same order.

        Each of `messages` is a payload, or `Outgoing(payload, delay=...)` with options of its own; `options` are for
        all. `then=(queue, payload)`: sent when all of them have ended. Raises what `send` raises.
        """
        items = JsonArray(self._item(one, options) for one in messages)
        params: dict[str, Any] = {"queue": self.name, "messages": items}
        if then is not None:
            queue, payload = then
            params |= {"then_queue": check_queue_name(queue), "then_payload": payload_of(payload)}
        if not items and then is None:
            return []
        with tracing.sending(self.name) as carrier:
            params["messages"] = JsonArray(tracing.carry(item, carrier) for item in items)
            return [int(row[0]) for row in self.source.call("send_batch", params, connection).rows]

    def _message(self, payload: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"queue": self.name, "payload": payload_of(payload, self._check), **sql_options(options)}

    def _item(self, one: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        payload, own = (one.payload, one.options) if isinstance(one, Outgoing) else (one, {})
        said = sql_options(own)
        general = sql_options(options)
        if "run_at" in said or "delay_seconds" in said:
            general = {name: value for name, value in general.items() if name not in ("run_at", "delay_seconds")}
        return {"payload": payload_of(payload, self._check), **to_json_data({**general, **said}, "the options")}

    # ------------------------------------------------------------------------------------------------------- results

    def result(self, msg_id: int, *, timeout: Duration = 30) -> Any:
        """Wait until a message is done and return what its handler returned; None where the queue keeps no results.

        Raises JobFailed when it is a dead letter or cancelled, TimeoutError after `timeout`, UsageError for an id that
        is nowhere.
        """
        return self.wait([msg_id], timeout=timeout)[0]

    def wait(self, ids: Sequence[int], *, timeout: Duration = 30) -> list[Any]:
        """Wait until all messages are done and return their results in the same order; see `result`."""
        end = time.monotonic() + seconds(timeout, "timeout")
        return [self._wait(msg_id, end) for msg_id in ids]

    def _wait(self, msg_id: int, end: float) -> Any:
        pause = _SHORTEST_LOOK
        while True:
            (row,) = self.source.call("result", {"queue": self.name, "msg_id": msg_id}).dicts()
            match row["state"]:
                case "done":
                    return row["value"]
                case "dead":
                    raise JobFailed(msg_id, row["reason"], row["error"])
                case "cancelled":
                    raise JobFailed(msg_id, "cancelled", "somebody cancelled it")
                case "unknown":
                    raise UsageError(
                        f"queue {self.name!r} has no message {msg_id}: purged, pruned or deleted when done"
                    )
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"message {msg_id} of queue {self.name!r} is still {row['state']}")
            threading.Event().wait(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_LOOK)

    # ------------------------------------------------------------------------------------------------------- by hand

    def cancel(self, msg_id: int) -> bool:
        """Take a message out of the queue, whatever it is doing; a run of it is told (`job.cancelled`).

        Returns whether it was there; it then stands in the archive as cancelled. Raises what `send` raises.
        """
        return self._settle("cancel", msg_id)

    def complete(self, msg_id: int) -> bool:
        """The same for a message whose work is done elsewhere: it counts as done."""
        return self._settle("complete", msg_id)

    def _settle(self, act: str, msg_id: int) -> bool:
        return bool(self.source.call(act, {"queue": self.name, "msg_id": msg_id}).rows[0][0])

    # --------------------------------------------------------------------------------------------------------- fetch

    def fetch(self, count: int = 1, *, lease: Duration = 60) -> list[Fetched]:
        """Claim up to `count` messages that are due, for a loop of your own; they are yours for `lease`.

        Returns at once, with an empty list where nothing is due or the queue is paused. See `Fetched` for how they
        end. Raises what `send` raises.
        """
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1000:
            raise UsageError(f"fetch: count must be 1 to 1000, not {count!r:.40}")
        held = whole_seconds(lease, "lease")
        if not held:
            raise UsageError("fetch: lease must be at least 1s")
        if self._fetcher is None:
            # Here, as everything that loads the driver: most programs only send.
            from queue_worker.fetched import Fetcher

            self._fetcher = Fetcher(self._reader, self.source.options(self.name, self._reader.options))
        try:
            return self._fetcher.fetch(self.source.transport(), count, held)
        except CallRefused as error:
            if error.sqlstate == UNDEFINED_TABLE:
                statement = renamed(f"select queue_worker.create_queue('{self.name}');")
                raise QueueNotFound(f'queue "{self.name}" does not exist ({statement})') from None
            raise mistake(error) from None


def once(
    key: str,
    fn: Callable[..., Any],
    /,
    *args: Any,
    unknown: UnknownPolicy = "raise",
    within: Duration = "2 minutes",
    database: str | AnyPool | None = None,
) -> Any:
    """Call `fn(key, *args)` unless it is recorded as done; `Job.once` for programs that are no worker.

    `database`: see `Queue`.
    """
    source = Source(database)

    def call(function: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        return source.transport().call(function, params).dicts()

    return call_once(call, uuid.uuid4().hex, key, fn, args, list(args), unknown, within)


def close() -> None:
    """Close the connections that the producers of this process share; the next call opens them again."""
    from queue_worker.opening import close_pools

    close_pools()


def _never_run(_job: Any) -> None:
    raise NotImplementedError


def _one_id(rows: Rows) -> int:
    return int(rows.rows[0][0])
