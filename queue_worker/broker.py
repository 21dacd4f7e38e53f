"""The queue as the worker sees it: typed calls on top of a transport, and what a job can do to the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic_core import from_json

from queue_worker.errors import CallRefused, LeaseLost, TransportError, TransportUnavailable
from queue_worker.message import ACK, Ack, DeadLetter, Message, Outcome, Receipt, Release, Retry, in_order
from queue_worker.processor import Job, Transaction
from queue_worker.transport import BigInts, Ints, JsonArray, Pool, Rows, Stamps, Transport
from queue_worker.transport.rest_values import plain, rows_of


class Settlement(NamedTuple):
    """A receipt and what became of its message; `counted`: it is one of a batch that something follows."""

    receipt: Receipt
    outcome: Outcome
    counted: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is done and nothing more is to be written about it."""
        return self.outcome is ACK and not self.counted


@dataclass(slots=True)
class Turn:
    """The answer of one round trip.

    `missed` names settlements that changed nothing: 'gone', 'stale' or 'error' and its text. `waiting` is 'suspect'
    or 'alone' when such a message waits for a worker that takes it. `limited`: a limit of the queue lets nothing start.
    `next_due` is in seconds from now.
    """

    messages: list[Message] = field(default_factory=list)
    missed: dict[int, tuple[str, str]] = field(default_factory=dict)
    buried: list[tuple[int, int]] = field(default_factory=list)
    waiting: str | None = None
    paused: bool = False
    limited: bool = False
    next_due: float | None = None
    error: str | None = None


def parse_headers(text: str | None) -> dict[str, Any]:
    """Return a message's headers; anything but a JSON object counts as none, because anybody may write them."""
    if text is None:
        return {}
    try:
        headers = from_json(text)
    except (ValueError, RecursionError):
        return {}
    return headers if isinstance(headers, dict) else {}


class Broker:
    """One queue over one transport; for one thread at a time.

    `worker` names the process in failures and among the sleepers.
    """

    def __init__(
        self, transport: Transport, queue: str, *, worker: str, lease_seconds: float, on_success: str, max_lost: int
    ) -> None:
        self.transport = transport
        self.queue = queue
        self._fixed = {"lease_seconds": float(lease_seconds), "max_lost": max_lost, "worker": worker}
        self._on_success = on_success

    def turn(
        self, settlements: Sequence[Settlement], max_count: int, *, suspects: int = 0, sleep: bool = False
    ) -> Turn:
        """Settle what has ended and claim up to `max_count` messages, in one round trip.

        `suspects`: 0 takes none, 1 one beside other work, 2 one alone. Raises TransportUnavailable (then the same
        settlements may be sent again) or CallRefused.
        """
        params = {
            "queue": self.queue,
            **_split(settlements, self._on_success),
            "max_count": max_count,
            **self._fixed,
            "suspects": suspects,
            "sleep": sleep,
        }
        return self._read(self.transport.call("queue_worker.settle_claim", params))

    def trip(self, seconds: float, probe_seconds: float, reason: str) -> None:
        """Pause the queue for all workers, for `seconds`, then let one message per `probe_seconds` through.

        Raises TransportUnavailable or CallRefused.
        """
        self.transport.call(
            "queue_worker.trip",
            {
                "queue": self.queue,
                "seconds": seconds,
                "probe_seconds": probe_seconds,
                "reason": reason,
                "worker": self._fixed["worker"],
            },
        )

    def close_breaker(self) -> None:
        """End the pause that `trip` began; raises TransportUnavailable or CallRefused."""
        self.transport.call("queue_worker.close_breaker", {"queue": self.queue, "worker": self._fixed["worker"]})

    def _read(self, rows: Rows) -> Turn:
        turn = Turn()
        if not rows.rows:
            return turn
        at = {name: position for position, name in enumerate(rows.columns)}
        kind, msg_id, read_ct, enqueued_at = at["kind"], at["msg_id"], at["read_ct"], at["enqueued_at"]
        payload, headers, failures, lost = at["payload"], at["headers"], at["failures"], at["lost"]
        probe = False
        for row in rows.rows:
            if row[kind] in _MESSAGES:
                receipt = Receipt(row[msg_id], row[read_ct], row[enqueued_at])
                message = Message(
                    self.queue, receipt, row[payload], parse_headers(row[headers]), row[failures], row[lost]
                )
                message.expired = row[kind] == "expired"
                turn.messages.append(message)
            elif row[kind] == "probe":
                probe = True
            else:
                _note(turn, row[kind], row[msg_id], row[at["detail"]] or "", row[lost])
        if probe:
            # What has expired does not run, and tries nothing.
            for message in turn.messages:
                message.probe = not message.expired
        turn.messages = in_order(turn.messages)
        return turn


_MESSAGES = ("job", "expired")


def _note(turn: Turn, kind: str, msg_id: int | None, detail: str, lost: int | None) -> None:
    """Enter a row that is no message into the turn."""
    if kind in ("paused", "limited"):
        turn.paused = kind == "paused"
        turn.limited = kind == "limited"
        turn.next_due = float(detail) if detail else None
    elif kind == "next":
        turn.next_due = float(detail)
    elif kind in ("suspect", "alone"):
        turn.waiting = kind
    elif msg_id is None:
        turn.error = detail
    elif kind == "dead":
        turn.buried.append((msg_id, lost or 0))
    else:
        turn.missed[msg_id] = (kind, detail)


def _split(settlements: Sequence[Settlement], on_success: str) -> dict[str, Any]:
    """Return settlements as arrays: those done, and the others with their details."""
    done: list[Receipt] = []
    others: list[Settlement] = []
    for one in settlements:
        if one.plain:
            done.append(one.receipt)
        else:
            others.append(one)
    details = [_detail(one.outcome) for one in others]
    return {
        "done_ids": BigInts(one.msg_id for one in done),
        "done_cts": Ints(one.read_ct for one in done),
        "done_ats": Stamps(one.enqueued_at for one in done),
        "on_success": on_success,
        "other_ids": BigInts(one.receipt.msg_id for one in others),
        "other_cts": Ints(one.receipt.read_ct for one in others),
        "other_ats": Stamps(one.receipt.enqueued_at for one in others),
        "kinds": [one[0] for one in details],
        "delays": [one[1] for one in details],
        "reasons": [one[2] for one in details],
        "errors": [one[3] for one in details],
    }


def _detail(outcome: Outcome) -> tuple[str, float, str, str]:
    """Return (kind, delay, reason, error) as SQL `settle` takes them."""
    match outcome:
        case Retry():
            return outcome.kind, outcome.delay, "", outcome.error
        case DeadLetter():
            return "dead", 0.0, outcome.reason, outcome.error
        case Release():
            return "release", outcome.delay, "", ""
        case Ack():
            return "result", 0.0, "", outcome.result or ""


def extend(transport: Transport, queue: str, receipts: Sequence[Receipt], lease_seconds: float) -> set[int]:
    """Extend leases to `lease_seconds` from now; returns the ids of those that are lost."""
    rows = transport.call(
        "queue_worker.extend",
        {
            "queue": queue,
            "ids": BigInts(one.msg_id for one in receipts),
            "read_cts": Ints(one.read_ct for one in receipts),
            "enqueued_ats": Stamps(one.enqueued_at for one in receipts),
            "lease_seconds": float(lease_seconds),
        },
    )
    return {row[0] for row in rows.rows}


def lost(transport: Transport, queue: str, receipts: Sequence[Receipt]) -> dict[int, bool]:
    """Return by id which of `receipts` are not held any more, and whether the message has left the queue."""
    rows = transport.call(
        "queue_worker.lost",
        {
            "queue": queue,
            "ids": BigInts(one.msg_id for one in receipts),
            "read_cts": Ints(one.read_ct for one in receipts),
            "enqueued_ats": Stamps(one.enqueued_at for one in receipts),
        },
    )
    return {row["msg_id"]: row["gone"] for row in rows.dicts()}


class DatabaseContext:
    """What a job can do to the database; implements `processor.JobContext` for one queue."""

    def __init__(
        self,
        pool: Pool,
        on_success: str,
        timeout_for: Callable[[Message], float],
        cancelled: Callable[[Job[Any]], bool],
    ) -> None:
        self._pool = pool
        self._on_success = on_success
        self._timeout_for = timeout_for
        self._cancelled = cancelled
        # Inside its own transaction a handler's calls use that connection: they commit with it, and a handler that held
        # one connection while it waited for a second would stand still with all the others. A context variable tells
        # threads apart, and also the tasks of one event loop.
        self._open: ContextVar[Transaction | None] = ContextVar("transaction", default=None)

    def call(self, function: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See `Job.call`."""
        transaction = self._open.get()
        if transaction is not None:
            return transaction.call(function, params)
        return self._pool.call(function, params).dicts()

    @contextmanager
    def transaction(self, job: Job[Any]) -> Iterator[Transaction]:
        """See `Job.transaction`."""
        seconds = self._timeout_for(job.message) + job.extra_seconds
        job.in_transaction = True
        try:
            message = job.message
            with self._pool.settling(
                job.queue, message.receipt, self._on_success, seconds, counted=message.counted
            ) as transaction:
                self._open.set(transaction)
                try:
                    yield transaction
                finally:
                    self._open.set(None)
            job.mark_settled()
        finally:
            job.in_transaction = False

    def finish(self, job: Job[Any], calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[dict[str, Any]]]:
        """See `Job.finish`."""
        receipt = job.message.receipt
        params = {
            "queue": job.queue,
            **receipt._asdict(),
            "on_success": self._on_success,
            "calls": JsonArray({"function": function, "arguments": plain(given)} for function, given in calls),
            "counted": job.message.counted,
        }
        job.in_transaction = True
        try:
            answer = next(iter(self._pool.call("queue_worker.finish", params).dicts()[0].values()))
        except CallRefused as error:
            # A lost race, as in a transaction of its own: nothing was kept, and nobody is charged.
            if error.sqlstate.startswith("40"):
                raise TransportUnavailable(str(error)) from None
            raise
        finally:
            job.in_transaction = False
        if answer["state"] != "done":
            raise LeaseLost(f"message {receipt.msg_id} of queue {job.queue!r} belongs to another worker")
        job.mark_settled()
        return [rows_of(one, receipts=False).dicts() for one in answer["answers"]]

    def send(self, queue: str, payload: Any, options: Mapping[str, Any]) -> int:
        """See `Job.send`."""
        rows = self.call("queue_worker.send", {"queue": queue, "payload": payload, **options})
        if not rows:
            raise TransportError(f"queue {queue!r}: send returned no id")
        return int(rows[0]["send"])

    def cancelled(self, job: Job[Any]) -> bool:
        """See `Job.cancelled`."""
        return self._cancelled(job)
