"""What the e-mail tests share: the engine's part around the handler, on a real database.

`Context` stands for the broker's DatabaseContext, so that these tests need no worker.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from smtp_server import SmtpServer

from queue_worker.errors import CallRefused, InvalidPayload, Reject, Retry, TransportUnavailable
from queue_worker.message import Message, Receipt
from queue_worker.processor import Job, Processor

Mailer = Callable[..., Processor]
"""Builds a processor from keyword arguments of EmailConfig; the fixture `mailer`."""


class Context:
    """A JobContext whose calls are committed at once. `fail[function]`: how many of its next calls find no database."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._local = threading.local()
        self._connections: list[psycopg.Connection[Any]] = []
        self.calls: list[str] = []
        self.fail: dict[str, int] = {}
        self.is_cancelled = False

    def call(self, function: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        self.calls.append(function)
        if self.fail.get(function, 0) > 0:
            self.fail[function] -= 1
            raise TransportUnavailable("the database is away")
        schema, name = function.split(".")
        arguments = sql.SQL(", ").join(
            sql.SQL("{} => {}").format(sql.Identifier(one), sql.Placeholder(one)) for one in params
        )
        query = sql.SQL("select * from {}({})").format(sql.Identifier(schema, name), arguments)
        try:
            return self._connection().execute(query, {one: _to_sql(value) for one, value in params.items()}).fetchall()
        except psycopg.Error as error:
            raise CallRefused(str(error), error.sqlstate or "") from None

    def query(self, text: str, *params: Any) -> list[dict[str, Any]]:
        """Run one statement; returns its rows."""
        cursor = self._connection().execute(text, params)
        return cursor.fetchall() if cursor.description else []

    def states(self, key: str) -> dict[str, str]:
        """The ledger's states of one mail by recipient."""
        rows = self.query("select recipient, state from queue_worker_data.mails where key = %s", key)
        return {row["recipient"]: row["state"] for row in rows}

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def _connection(self) -> psycopg.Connection[dict[str, Any]]:
        if not hasattr(self._local, "connection"):
            self._local.connection = psycopg.connect(self._dsn, autocommit=True, row_factory=dict_row)
            self._connections.append(self._local.connection)
        return self._local.connection  # type: ignore[no-any-return]

    def transaction(self, job: Job[Any]) -> AbstractContextManager[Any]:
        raise NotImplementedError

    def send(self, queue: str, payload: Any, options: Mapping[str, Any]) -> int:
        raise NotImplementedError

    def cancelled(self, job: Job[Any]) -> bool:
        return self.is_cancelled


def _to_sql(value: Any) -> Any:
    return Jsonb(value) if isinstance(value, list) and value and isinstance(value[0], dict) else value


class MemoryStorage(dict[str, bytes]):
    """Stored objects in memory."""

    def size(self, key: str) -> int:
        return len(self.read(key))

    def read(self, key: str) -> bytes:
        if key not in self:
            raise FileNotFoundError(key)
        return self[key]


class HoldingServer(SmtpServer):
    """Keeps its answer to the final dot back until `release`, then takes the mail."""

    def __init__(self) -> None:
        super().__init__()
        self._released = threading.Event()

    def release(self) -> None:
        self._released.set()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        await asyncio.get_running_loop().run_in_executor(None, self._released.wait, 30)
        return await super().handle_DATA(server, session, envelope)


@dataclass
class Outcome:
    """What a run came to: done, retry, reject, invalid, released; with the reason and what the log line would hold."""

    kind: str
    reason: str = ""
    delay: float | None = None
    note: dict[str, Any] = field(default_factory=dict)


def make_job(processor: Processor, context: Context, body: Any, *, msg_id: int = 1, attempt: int = 1) -> Job[Any]:
    """Build the job of a message; raises InvalidPayload."""
    text = body if isinstance(body, str) else json.dumps(body)
    message = Message("email", Receipt(msg_id, attempt, None), text, failures=attempt - 1)
    return Job(message, processor.parse(text), 6, context)


def run(processor: Processor, context: Context, body: Any, *, msg_id: int = 1, attempt: int = 1) -> Outcome:
    """Run one attempt as the engine does."""
    try:
        job = make_job(processor, context, body, msg_id=msg_id, attempt=attempt)
    except InvalidPayload as error:
        return Outcome("invalid", str(error))
    try:
        processor.handler(job)
    except InvalidPayload as error:
        return Outcome("invalid", str(error), note=job.note)
    except Reject as error:
        return Outcome("reject", error.reason, note=job.note)
    except Retry as error:
        return Outcome("retry", error.reason, error.delay, note=job.note)
    except TransportUnavailable as error:
        return Outcome("released", str(error), note=job.note)
    return Outcome("done", note=job.note)


def run_to_end(
    processor: Processor, context: Context, body: Any, *, msg_id: int = 1, attempts: int = 6
) -> list[Outcome]:
    """Run attempts until one ends the message."""
    outcomes: list[Outcome] = []
    for attempt in range(1, attempts + 1):
        outcomes.append(run(processor, context, body, msg_id=msg_id, attempt=attempt))
        if outcomes[-1].kind != "retry":
            break
    return outcomes
