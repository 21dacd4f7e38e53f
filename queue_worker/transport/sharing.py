"""SQL functions over connections that belong to somebody else: the host program's pool, the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from queue_worker.errors import TransportUnavailable, UsageError
from queue_worker.message import Receipt
from queue_worker.schema_name import renamed_arguments
from queue_worker.transport import Rows
from queue_worker.transport.adapt import register
from queue_worker.transport.postgres import arguments, statement, translate
from queue_worker.transport.transactions import done_arguments, raise_missed

AnyPool = ConnectionPool[Any]
"""A pool of the host program, whatever its connections make of rows."""


class HostPool:
    """Calls through a `psycopg_pool.ConnectionPool` of the host program; implements `Transport`.

    Nothing of its connections is changed: neither their row factories nor their adapters. It is never closed here.
    """

    def __init__(self, pool: AnyPool) -> None:
        self._pool = pool

    def call(self, function: str, params: Mapping[str, Any]) -> Rows:
        """See `Transport.call`."""
        connection = None
        try:
            with self._pool.connection() as connection:
                return _run(connection, function, params)
        except (PoolTimeout, PoolClosed) as error:
            raise TransportUnavailable(f"the program's pool gives no connection: {error}") from None
        except psycopg.Error as error:
            raise translate(error, connection) from None

    def abort(self) -> None:
        """Nothing: the calls are the host program's to cut."""

    def close(self) -> None:
        """Nothing: the pool is the host program's."""


def host_pool(given: Any) -> HostPool:
    """Return the transport over `given`; raises UsageError for anything but a `psycopg_pool.ConnectionPool`."""
    if isinstance(given, ConnectionPool):
        return HostPool(given)
    raise UsageError(f"database must be a URL or a psycopg_pool.ConnectionPool, not {_kind(given)}")


def call_in(given: Any, function: str, params: Mapping[str, Any]) -> Rows:
    """Call a function on the caller's own connection, inside the transaction that is open there; it is not committed.

    `given`: a psycopg Connection, or a Connection or Session of SQLAlchemy with the dialect postgresql+psycopg. Raises
    UsageError for another kind, TransportUnavailable or CallRefused; the caller's transaction is then broken.
    """
    connection = _psycopg_of(given)
    try:
        return _run(connection, function, params)
    except psycopg.Error as error:
        raise translate(error, connection) from None


def settle_in(given: Any, queue: str, receipt: Receipt, on_success: str, *, counted: bool) -> None:
    """Settle a message as done in the caller's transaction; raises LeaseLost, and then nothing may be committed.

    `counted`: it is one of a batch that something follows.
    """
    params = done_arguments(queue, receipt, on_success, counted=counted)
    raise_missed(call_in(given, "queue_worker.settle", params), queue, receipt)


async def call_in_async(given: Any, function: str, params: Mapping[str, Any]) -> Rows:
    """See `call_in`; `given` is a psycopg AsyncConnection."""
    if not isinstance(given, psycopg.AsyncConnection):
        raise UsageError(f"connection must be a psycopg AsyncConnection here, not {_kind(given)}")
    cursor: psycopg.AsyncCursor[Any] = psycopg.AsyncCursor(given, row_factory=tuple_row)
    async with cursor:
        register(cursor, receipts=True)
        try:
            await cursor.execute(
                statement(function, tuple(params)), arguments(renamed_arguments(function, params)), binary=True
            )
            rows = await cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise translate(error, given) from None
        return Rows(tuple(column.name for column in cursor.description or ()), rows)


def _run(connection: psycopg.Connection[Any], function: str, params: Mapping[str, Any]) -> Rows:
    # A cursor of our own kind: the connection may have a factory that makes dicts, or that cannot bind in binary.
    cursor: psycopg.Cursor[Any] = psycopg.Cursor(connection, row_factory=tuple_row)
    with cursor:
        register(cursor, receipts=True)
        cursor.execute(statement(function, tuple(params)), arguments(renamed_arguments(function, params)), binary=True)
        rows = cursor.fetchall() if cursor.description else []
        return Rows(tuple(column.name for column in cursor.description or ()), rows)


def _psycopg_of(given: Any) -> psycopg.Connection[Any]:
    """Return the psycopg connection under `given`, in whose transaction the caller works."""
    found = given
    # By its shape, because sqlalchemy is no dependency. A Session has a method that begins, a Connection an attribute.
    if callable(getattr(found, "connection", None)):
        found = found.connection()
    if callable(getattr(found, "in_transaction", None)) and not found.in_transaction():
        # A statement that SQLAlchemy did not see would not be committed by its commit().
        found.begin()
    found = getattr(getattr(found, "connection", found), "driver_connection", found)
    if isinstance(found, psycopg.Connection):
        return found
    raise UsageError(
        "connection must be a psycopg Connection, or a Connection or Session of SQLAlchemy over postgresql+psycopg,"
        f" not {_kind(given)}"
    )


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
