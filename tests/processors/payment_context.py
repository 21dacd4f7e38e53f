"""What the payment tests share: the user's side of payments, and a job context whose transaction is a real one.

STAND-IN: `Context` stands in for the broker's DatabaseContext, so that a test can stop between any two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from queue_worker.errors import CallRefused, LeaseLost
from queue_worker.message import Message, Receipt
from queue_worker.processor import Job, Processor


class Crash(BaseException):
    """The process dies here."""


class Context:
    """A JobContext over psycopg; `crash` makes the process die before a transaction begins."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.crash = False
        self.is_cancelled = False
        self.after_call: Callable[[str], None] = lambda function: None

    def call(self, function: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        with psycopg.connect(self.dsn, row_factory=dict_row) as connection:
            rows = run(connection, function, params)
        self.after_call(function)
        return rows

    @contextmanager
    def transaction(self, job: Job[Any]) -> Iterator[Tx]:
        if self.crash:
            raise Crash
        queue_row = "select 1 from pgmq.q_payments where msg_id = %s for update"
        with psycopg.connect(self.dsn, row_factory=dict_row) as connection:
            if connection.execute(queue_row, [job.msg_id]).fetchone() is None:
                raise LeaseLost(f"message {job.msg_id} is gone")
            yield Tx(connection)
            connection.execute("delete from pgmq.q_payments where msg_id = %s", [job.msg_id])
        job.mark_settled()

    def finish(self, job: Job[Any], calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[dict[str, Any]]]:
        with self.transaction(job) as transaction:
            return [transaction.call(function, params) for function, params in calls]

    def send(self, queue: str, payload: Any, options: Mapping[str, Any]) -> int:
        raise NotImplementedError

    def cancelled(self, job: Job[Any]) -> bool:
        return self.is_cancelled


class Tx:
    """The open transaction, as handlers see it."""

    def __init__(self, connection: psycopg.Connection[dict[str, Any]]) -> None:
        self.connection = connection

    def execute(self, query: Any, params: Any = None) -> Any:
        return self.connection.execute(query, params)

    def call(self, function: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        return run(self.connection, function, params)


def run(connection: psycopg.Connection[Any], function: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    arguments = sql.SQL(", ").join(
        sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in params
    )
    statement = sql.SQL("select * from {}({})").format(sql.Identifier(*function.split(".")), arguments)
    try:
        return connection.execute(statement, params).fetchall()
    except psycopg.Error as error:
        raise CallRefused(error.diag.message_primary or str(error), error.sqlstate or "") from None


class Desk:
    """The user's side: rows of public.payments, whose trigger enqueues them, and runs of the processor."""

    def __init__(self, dsn: str, connection: psycopg.Connection[dict[str, Any]]) -> None:
        self.connection = connection
        self.context = Context(dsn)
        self.job: Job[Any] | None = None

    def query(self, query: str, *params: Any) -> list[dict[str, Any]]:
        cursor = self.connection.execute(query.encode(), params or None)
        return cursor.fetchall() if cursor.description else []

    def order(self, amount: int = 1250, currency: str = "EUR", account: str = "ann") -> int:
        """Insert a payment; the trigger sends its message. Returns the id."""
        (row,) = self.query(
            "insert into public.payments (amount_minor, currency, account) values (%s, %s, %s) returning id",
            amount,
            currency,
            account,
        )
        return int(row["id"])

    def authorized(self, amount: int = 1250, account: str = "ann") -> int:
        """Insert a payment whose message asks for an authorization instead of a charge. Returns the id."""
        order = self.order(amount, account=account)
        self.query("delete from pgmq.q_payments where message ->> 'id' = %s", str(order))
        self.send(f'{{"id": {order}, "action": "authorize"}}')
        return order

    def act(self, action: str, order: int, amount: int) -> int:
        """Insert a capture or refund of a payment; the trigger sends its message. Returns its id."""
        (row,) = self.query(
            "insert into public.payment_actions (payment_id, action, amount_minor) values (%s, %s, %s) returning id",
            order,
            action,
            amount,
        )
        return int(row["id"])

    def action(self, action_id: int) -> dict[str, Any]:
        """The user's row of a capture or refund."""
        (row,) = self.query("select * from public.payment_actions where id = %s", action_id)
        return row

    def send(self, payload: str) -> int:
        """Send a message with this JSON text; returns the message's id."""
        (row,) = self.query("select queue_worker.send('payments', %s::jsonb) as msg_id", payload)
        return int(row["msg_id"])

    def messages(self) -> list[dict[str, Any]]:
        """The messages that are not done, oldest first."""
        return self.query("select msg_id, read_ct, enqueued_at, message::text as body from pgmq.q_payments order by 1")

    def run(self, processor: Processor, attempt: int = 1, max_attempts: int = 6) -> BaseException | None:
        """Run the oldest message; returns what the handler raised, None when it ended well."""
        row = self.messages()[0]
        message = Message(
            "payments", Receipt(row["msg_id"], row["read_ct"], row["enqueued_at"]), row["body"], failures=attempt - 1
        )
        try:
            self.job = Job(message, processor.parse(message.body), max_attempts, self.context)
            processor.handler(self.job)
        except (Exception, Crash) as error:
            return error
        assert self.job.settled
        return None

    def note(self) -> dict[str, Any]:
        """What the last run wrote into the log line."""
        assert self.job is not None
        return self.job.note

    def payment(self, payment_id: int) -> dict[str, Any]:
        """The user's row."""
        (row,) = self.query("select * from public.payments where id = %s", payment_id)
        return row

    def ledger(self) -> list[dict[str, Any]]:
        """The rows of the ledger."""
        return self.query("select * from queue_worker_data.payment_ledger order by created_at")
