"""What the report tests share: report functions in a real database, and jobs whose context is the broker's own."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import psycopg

from queue_worker.broker import DatabaseContext
from queue_worker.message import Message, Receipt
from queue_worker.processor import Job, Processor
from queue_worker.processors.reports import FileStore, ReportsConfig, make_processor
from queue_worker.storage import LocalStorage
from queue_worker.transport.transactions import TransactionPool


def published(folder: Path) -> list[str]:
    """Return the files below `folder`."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def rows_of(storage: LocalStorage, key: str = "out/sales.csv") -> list[list[str]]:
    """Return the cells of a published csv."""
    return list(csv.reader(io.StringIO(storage.read(key).decode("utf-8-sig"), newline="")))


class Desk:
    """The user's side: report functions in the schema public, messages, and runs of the processor."""

    def __init__(self, connection: psycopg.Connection[dict[str, Any]], pool: TransactionPool) -> None:
        self.connection = connection
        self.cancelled = False
        self.context = DatabaseContext(pool, "archive", lambda message: 60.0, lambda job: self.cancelled)
        self.job: Job[Any] | None = None

    def query(self, query: str, *params: Any) -> list[dict[str, Any]]:
        cursor = self.connection.execute(query.encode(), params or None)
        return cursor.fetchall() if cursor.description else []

    def function(self, columns: str, body: str, name: str = "sales") -> None:
        """Create the report function public.<name>(params jsonb) that returns these columns."""
        self.query(
            f"create or replace function public.{name}(params jsonb) returns table ({columns})"
            f" language sql as $fn$ {body} $fn$"
        )

    def send(self, payload: dict[str, Any]) -> int:
        (row,) = self.query("select queue_worker.send('reports', %s::jsonb) as msg_id", json.dumps(payload))
        return int(row["msg_id"])

    def run(self, processor: Processor, msg_id: int) -> BaseException | None:
        """Run a message; returns what the payload's check or the handler raised, None when it ended well."""
        (row,) = self.query(
            "select read_ct, enqueued_at, message::text as body from pgmq.q_reports where msg_id = %s", msg_id
        )
        message = Message("reports", Receipt(msg_id, row["read_ct"], row["enqueued_at"]), row["body"])
        try:
            self.job = Job(message, processor.parse(message.body), 6, self.context)
            processor.handler(self.job)
        except Exception as error:
            return error
        return None

    def make(self, storage: FileStore, *formats: str, **payload: Any) -> BaseException | None:
        """Send a message for the report `sales` and run it with the default configuration."""
        request = {"report": "sales", "key": "out/sales", "formats": list(formats), **payload}
        return self.run(make_processor(ReportsConfig({"sales": "public.sales"}), storage), self.send(request))

    def note(self) -> dict[str, Any]:
        """What the last run wrote into the log line."""
        assert self.job is not None
        return self.job.note

    def mails(self) -> list[dict[str, Any]]:
        """The payloads in the queue `email`, oldest first."""
        return [row["message"] for row in self.query("select message from pgmq.q_email order by msg_id")]
