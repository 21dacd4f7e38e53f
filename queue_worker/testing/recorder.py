"""A job's database that is none: it writes down what the handler asks of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from queue_worker.errors import LeaseLost
from queue_worker.processor import Job, Transaction

Answers = Callable[[str, Any], Sequence[Any]]
"""`(statement or function, parameters)` -> the rows that it returns."""


class Sent(NamedTuple):
    """One `job.send`."""

    queue: str
    payload: Any
    options: Mapping[str, Any]


class Called(NamedTuple):
    """One SQL function that was called, by `job.call` or in the transaction."""

    function: str
    params: Mapping[str, Any]


class Executed(NamedTuple):
    """One statement of `job.transaction()`."""

    statement: str
    params: Any


class Rows:
    """What `tx.execute` returns: the part of a psycopg cursor that handlers use."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = list(rows)
        self.rowcount = len(self._rows)

    def fetchone(self) -> Any:
        """Return the next row, None after the last."""
        return self._rows.pop(0) if self._rows else None

    def fetchall(self) -> list[Any]:
        """Return the rows that are left."""
        rows, self._rows = self._rows, []
        return rows

    def __iter__(self) -> Iterator[Any]:
        while self._rows:
            yield self._rows.pop(0)


class Recorder:
    """Implements `processor.JobContext`; what a transaction that fails has asked for is forgotten, as a rollback does.

    `answers` gives the rows of calls and statements. `is_cancelled`: the run has lost its message; its transaction then
    raises LeaseLost.
    """

    def __init__(self, answers: Answers | None, is_cancelled: bool) -> None:
        self.sent: list[Sent] = []
        self.calls: list[Called] = []
        self.statements: list[Executed] = []
        self._answers = answers
        self._is_cancelled = is_cancelled

    def rows(self, text: str, params: Any) -> Sequence[Any]:
        """Return the rows that a statement or a function gives."""
        return self._answers(text, params) if self._answers else ()

    def call(self, function: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See `Job.call`."""
        self.calls.append(Called(function, dict(params)))
        return [dict(row) for row in self.rows(function, params)]

    def send(self, queue: str, payload: Any, options: Mapping[str, Any]) -> int:
        """See `Job.send`; ids count from 1."""
        self.sent.append(Sent(queue, payload, dict(options)))
        return len(self.sent)

    def finish(self, job: Job[Any], calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[dict[str, Any]]]:
        """See `Job.finish`."""
        with self.transaction(job) as transaction:
            return [transaction.call(function, params) for function, params in calls]

    @contextmanager
    def transaction(self, job: Job[Any]) -> Iterator[Transaction]:
        """See `Job.transaction`."""
        if self._is_cancelled:
            raise LeaseLost(f"message {job.msg_id} of queue {job.queue!r} belongs to another worker")
        lists: tuple[list[Any], ...] = (self.sent, self.calls, self.statements)
        before = [len(one) for one in lists]
        try:
            yield _Transaction(self)
        except BaseException:
            for one, length in zip(lists, before, strict=True):
                del one[length:]
            raise
        job.mark_settled()

    def cancelled(self, job: Job[Any]) -> bool:
        """See `Job.cancelled`."""
        return self._is_cancelled


class _Transaction:
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def execute(self, query: Any, params: Any = None) -> Rows:
        self._recorder.statements.append(Executed(str(query), params))
        return Rows(self._recorder.rows(str(query), params))

    def call(self, function: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self._recorder.call(function, params)
