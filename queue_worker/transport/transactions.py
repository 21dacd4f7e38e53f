"""Short transactions for handlers: plain calls, and the transaction that ends with its message settled."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from queue_worker.errors import CallRefused, LeaseLost, TransportUnavailable
from queue_worker.message import Receipt
from queue_worker.schema_name import renamed
from queue_worker.transport import BigInts, Ints, Rows, Stamps
from queue_worker.transport.postgres import connect, cut, run, translate

_WAIT = 10.0
"""How long a handler waits for a free connection, in seconds."""

_CHECK = 5.0
"""How long an idle connection may take to prove that it still works, in seconds."""

_MARGIN = 2.0
"""How long after the run's time limit the server itself ends a transaction, in seconds."""

_RESOLVE = 30.0
"""How long the outcome of a COMMIT without an answer is asked for, in seconds."""


# A server that crashed gives the numbers of transactions it never wrote down to new ones, so "committed" may be said of
# somebody else's. A message that is still held under its receipt was certainly not settled.
_WHAT_BECAME = """
    select x.status, case when x.status = 'committed' then queue_worker.hold(%s, %s, %s, %s) end
    from (select pg_xact_status(%s::xid8) as status) x
"""


_HOLD = """
    select queue_worker.hold(%s, %s, %s, %s), pg_current_xact_id()::text,
           set_config('idle_in_transaction_session_timeout', %s, true), set_config(%s, %s, true)
"""


class PostgresTransaction:
    """An open transaction; implements `processor.Transaction`."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def execute(self, query: Any, params: Any = None) -> psycopg.Cursor[Any]:
        """Run one statement; returns its cursor."""
        return self._connection.execute(query, params)

    def call(self, function: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Call one SQL function with named arguments; returns its rows."""
        return run(self._connection, function, params).dicts()


class TransactionPool:
    """Connections for handlers and producers, opened on first use and given up when idle; implements `Transport`.

    `size` is the most that are open at a time. `receipts`: see `adapt.register`.
    """

    def __init__(self, conninfo: Callable[[], str], *, pooler: bool, size: int, receipts: bool = False) -> None:
        self._conninfo = conninfo
        self._pooler = pooler
        self._receipts = receipts
        self._size = size
        self._pool: ConnectionPool[psycopg.Connection[Any]] | None = None
        self._opening = threading.Lock()
        # By connection in use: its thread, and when its time is over at the latest.
        self._in_use: dict[psycopg.Connection[Any], tuple[int, float]] = {}

    def cut_stuck(self, threads: Set[int]) -> int:
        """Abort what is in use by `threads`, whose handlers have no time left, or stands still; returns how many."""
        # A connection that a silent network has swallowed never returns by itself, and would hold its thread for ever.
        now = time.monotonic()
        stuck = [one for one, (thread, end) in list(self._in_use.items()) if thread in threads or now > end]
        for connection in stuck:
            cut(connection)
        return len(stuck)

    @contextmanager
    def _used(self, connection: psycopg.Connection[Any], seconds: float = math.inf) -> Iterator[None]:
        self._in_use[connection] = threading.get_ident(), time.monotonic() + seconds
        try:
            yield
        finally:
            self._in_use.pop(connection, None)

    def _check(self, connection: psycopg.Connection[Any]) -> None:
        with self._used(connection, _CHECK):
            ConnectionPool.check_connection(connection)

    def call(self, function: str, params: Mapping[str, Any]) -> Rows:
        """Call one function in a transaction of its own; raises TransportUnavailable or CallRefused."""
        with self._borrow() as connection:
            try:
                rows = run(connection, function, params)
                connection.commit()
            except psycopg.Error as error:
                raise translate(error, connection) from None
            return rows

    @contextmanager
    def settling(
        self, queue: str, receipt: Receipt, on_success: str, seconds: float, *, counted: bool = False
    ) -> Iterator[PostgresTransaction]:
        """Run the block and settle the message as done, in one transaction.

        `seconds` bounds how long the transaction may last; `counted`: see `done_arguments`. Raises LeaseLost before the
        block when the receipt is stale, or after it; TransportUnavailable when the connection went away and nothing was
        kept.
        """
        with self._borrow() as connection:
            try:
                # The row is locked first: what the block writes after this line cannot belong to a stale run.
                transaction_id = _hold(connection, queue, receipt, seconds)
                yield PostgresTransaction(connection)
                _settle(connection, queue, receipt, on_success, counted)
            except psycopg.Error as error:
                failure = translate(error, connection)
                # Infrastructure and lost races (40001, 40P01) cost no attempt; the rest is the block's own.
                if isinstance(failure, TransportUnavailable) or (error.sqlstate or "").startswith("40"):
                    raise failure from None
                raise
            try:
                connection.commit()
            except psycopg.Error as error:
                if not connection.closed:
                    raise translate(error, connection) from None
                if not self._committed(transaction_id, queue, receipt):
                    raise TransportUnavailable("the connection was lost, the transaction rolled back") from None

    def _committed(self, transaction_id: str, queue: str, receipt: Receipt) -> bool:
        """Ask what became of a COMMIT that was never answered; it is known or the question is asked again."""
        end = time.monotonic() + _RESOLVE
        while True:
            try:
                with connect(self._conninfo(), pooler=self._pooler) as connection, self._used(connection):
                    row = connection.execute(
                        renamed(_WHAT_BECAME).encode(), [queue, *receipt, transaction_id]
                    ).fetchone()
                if row is not None and row[0] != "in progress":
                    return bool(row[0] == "committed" and not row[1])
            except (psycopg.Error, TransportUnavailable):
                pass
            if time.monotonic() > end:
                raise TransportUnavailable("the outcome of a COMMIT is unknown: its answer was lost") from None
            threading.Event().wait(0.2)

    @contextmanager
    def _borrow(self) -> Iterator[psycopg.Connection[Any]]:
        pool = self._open()
        try:
            connection = pool.getconn(timeout=_WAIT)
        except (PoolTimeout, PoolClosed, psycopg.OperationalError) as error:
            raise TransportUnavailable(f"no connection for a transaction within {_WAIT:.0f} s: {error}") from None
        try:
            with self._used(connection):
                yield connection
        except BaseException:
            with suppress(psycopg.Error):
                connection.rollback()
            raise
        finally:
            pool.putconn(connection)

    def _open(self) -> ConnectionPool[psycopg.Connection[Any]]:
        with self._opening:
            if self._pool is None:
                pool = ConnectionPool(
                    connection_class=_connection_class(self._conninfo, self._pooler, self._receipts),
                    min_size=0,
                    max_size=self._size,
                    max_idle=60.0,
                    num_workers=1,
                    open=False,
                    # A connection that died while it lay idle costs no handler an attempt.
                    check=self._check,
                )
                pool.open()
                self._pool = pool
            return self._pool

    def abort(self) -> None:
        """Cut every connection in use; their calls raise TransportUnavailable."""
        for connection in list(self._in_use):
            cut(connection)

    def close(self) -> None:
        """Close all connections; waits a moment for those in use. The next call opens the pool again."""
        with self._opening:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close(timeout=2.0)


def _connection_class(conninfo: Callable[[], str], pooler: bool, receipts: bool) -> type[psycopg.Connection[Any]]:
    class Opened(psycopg.Connection[Any]):
        """Opens through `connect`, so that pooled connections are set up like all others."""

        @classmethod
        def connect(cls, *_args: Any, **_kwargs: Any) -> psycopg.Connection[Any]:  # type: ignore[override]
            try:
                return connect(conninfo(), pooler=pooler, receipts=receipts, autocommit=False)
            except TransportUnavailable as error:
                raise psycopg.OperationalError(str(error)) from None

    return Opened


def _hold(connection: psycopg.Connection[Any], queue: str, receipt: Receipt, seconds: float) -> str:
    # The server ends what a lost process has left open; here the time limit of the run comes first.
    limit = str(int((seconds + _MARGIN) * 1000))
    # Before version 17 nothing bounds the whole transaction, but each statement can be.
    whole = "transaction_timeout" if connection.info.server_version >= 170000 else "statement_timeout"
    row = connection.execute(
        renamed(_HOLD).encode(),
        [queue, receipt.msg_id, receipt.read_ct, receipt.enqueued_at, limit, whole, limit],
    ).fetchone()
    if row is None or not row[0]:
        raise LeaseLost(f"message {receipt.msg_id} of queue {queue!r} belongs to another worker")
    return str(row[1])


def _settle(connection: psycopg.Connection[Any], queue: str, receipt: Receipt, on_success: str, counted: bool) -> None:
    missed = run(connection, "queue_worker.settle", done_arguments(queue, receipt, on_success, counted=counted))
    raise_missed(missed, queue, receipt)


def done_arguments(queue: str, receipt: Receipt, on_success: str, *, counted: bool = False) -> dict[str, Any]:
    """Return the arguments of SQL `settle` for one message that is done.

    `counted`: it is one of a batch that something follows, so it is settled as a result, which keeps nothing here.
    """
    prefix = "other" if counted else "done"
    found = {
        "queue": queue,
        f"{prefix}_ids": BigInts([receipt.msg_id]),
        f"{prefix}_cts": Ints([receipt.read_ct]),
        f"{prefix}_ats": Stamps([receipt.enqueued_at]),
        "on_success": on_success,
    }
    return {**found, "kinds": ["result"], "delays": [0.0], "reasons": [""], "errors": [""]} if counted else found


def raise_missed(missed: Rows, queue: str, receipt: Receipt) -> None:
    """Raise LeaseLost or CallRefused if SQL `settle` answered that the message was not settled."""
    for row in missed.dicts():
        if row["kind"] == "error":
            raise CallRefused(f"the result could not be stored: {row['detail']}", row["detail"][:5])
    if missed.rows:
        raise LeaseLost(f"message {receipt.msg_id} of queue {queue!r} was lost during its transaction")
