"""The database as the commands use it: calls of SQL functions, and the line for a queue that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from queue_worker.cli.values import queue_name
from queue_worker.config import Settings
from queue_worker.errors import CallRefused, QueueNotFound
from queue_worker.sqlstates import OTHER_ENVIRONMENT, UNDEFINED_TABLE
from queue_worker.transport import Transport


class Operator:
    """Calls SQL functions over one connection."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def call(self, function: str, /, **params: Any) -> list[dict[str, Any]]:
        """Call a function of schema `queue_worker`; returns its rows.

        Raises QueueNotFound, another CallRefused, or TransportUnavailable.
        """
        try:
            return self.transport.call(f"queue_worker.{function}", params).dicts()
        except CallRefused as error:
            if error.sqlstate == UNDEFINED_TABLE and "queue" in params:
                self.queue(params["queue"])
            raise

    def value(self, function: str, /, **params: Any) -> Any:
        """Call a function that returns one value."""
        [row] = self.call(function, **params)
        return next(iter(row.values()))

    def queue(self, name: str) -> dict[str, Any]:
        """Return the row of the queue `name`; raises UsageError for a bad name, QueueNotFound for a missing queue."""
        queue_name(name)
        rows = {row["queue"]: row for row in self.call("list_queues")}
        if name in rows:
            return rows[name]
        self._check_environment(name)
        near = get_close_matches(name, rows, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        there = ", ".join(rows) if rows else "none"
        raise QueueNotFound(
            f"queue {name!r} does not exist; {hint}queues here: {there}; `queue-worker create {name}` makes it"
        )

    def _check_environment(self, name: str) -> None:
        """Raise CallRefused with the line of the database if another environment has the queue: lists leave it out."""
        try:
            self.transport.call("queue_worker.message", {"queue": name, "msg_id": 0})
        except CallRefused as error:
            if error.sqlstate == OTHER_ENVIRONMENT:
                raise


@contextmanager
def database(settings: Settings) -> Iterator[Operator]:
    """Open the database of `settings` while the block runs; raises ConfigError where none is set."""
    from queue_worker.opening import open_database

    opened = open_database(settings)
    try:
        yield Operator(opened.transport())
    finally:
        opened.close()
