"""SQL functions over psycopg: one connection a transport, opened on first use and again after every loss."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from queue_worker.errors import CallRefused, ConfigError, TransportError, TransportUnavailable
from queue_worker.schema_name import current, renamed, renamed_arguments
from queue_worker.sqlstates import server_trouble
from queue_worker.transport import Rows
from queue_worker.transport.adapt import bear_odd_times, register, to_sql

POOLER_PORT = 6543
"""Supabase's transaction pooler; see its guide "Connect to your database"."""

_NOT_PREPARED_HERE = ("26000", "42P05")
"""A prepared statement is missing, or there already: another client's server answered."""

_NETWORK = {
    "connect_timeout": 2,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}


def is_pooler(conninfo: str) -> bool:
    """Whether the address is that of a transaction pooler, going by its port."""
    return any(port == str(POOLER_PORT) for port in str(_parts(conninfo).get("port", "")).split(","))


def _parts(conninfo: str) -> dict[str, Any]:
    try:
        return conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        # The text of the error would repeat the address, and with it the password.
        raise ConfigError(
            "DATABASE_URL is not a valid address: use postgresql://user:password@host:5432/database, with special"
            " characters of the password percent-encoded"
        ) from None


def connect(conninfo: str, *, pooler: bool, receipts: bool = False, autocommit: bool = True) -> psycopg.Connection[Any]:
    """Open a connection that holds no session state; raises TransportUnavailable."""
    # utf8: an error text of any language must reach its row, whatever PGCLIENTENCODING says.
    options = {**_NETWORK, "application_name": "queue_worker", **_parts(conninfo), "client_encoding": "utf8"}
    try:
        # A transaction pooler gives every statement another server, so nothing may be prepared there.
        connection = psycopg.connect(autocommit=autocommit, prepare_threshold=None if pooler else 3, **options)
    except psycopg.OperationalError as error:
        raise TransportUnavailable(describe(error)) from None
    register(connection, receipts=receipts)
    return connection


def describe(error: psycopg.Error) -> str:
    """Return an error as one line without the address's password."""
    text = error.diag.message_primary or str(error)
    if error.diag.message_hint:
        text += f" ({error.diag.message_hint})"
    return " ".join(text.split())


def translate(error: psycopg.Error, connection: psycopg.BaseConnection[Any] | None) -> TransportError:
    """Return our exception for psycopg's; an infrastructure error says that the call may be repeated."""
    state = error.sqlstate or ""
    # By SQLSTATE first: psycopg files some of these, such as 25006, under classes of other kinds.
    if server_trouble(state):
        return TransportUnavailable(describe(error))
    gone = connection is None or connection.closed or not state
    if gone and isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return TransportUnavailable(describe(error))
    return CallRefused(describe(error), state)


def statement(function: str, names: tuple[str, ...]) -> sql.Composed:
    """Return the call of a schema-qualified function with the named arguments."""
    return _statement(renamed(function), names)


@lru_cache(maxsize=256)
def _statement(function: str, names: tuple[str, ...]) -> sql.Composed:
    schema, _, name = function.partition(".")
    named = sql.SQL(", ").join(sql.SQL("{} => {}").format(sql.Identifier(one), sql.Placeholder(one)) for one in names)
    return sql.SQL("select * from {}({})").format(sql.Identifier(schema, name), named)


def arguments(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values for `statement` as psycopg takes them."""
    return {name: to_sql(value) for name, value in params.items()}


def run(connection: psycopg.Connection[Any], function: str, params: Mapping[str, Any]) -> Rows:
    """Call a function on an open connection, inside whatever transaction that has; raises psycopg's errors."""
    with connection.cursor(binary=True) as cursor:
        bear_odd_times(cursor)
        cursor.execute(statement(function, tuple(params)), arguments(renamed_arguments(function, params)))
        if cursor.description is None:
            return Rows()
        return Rows(tuple(column.name for column in cursor.description), cursor.fetchall())


def cut(connection: psycopg.Connection[Any]) -> None:
    """Make the call that another thread waits for on `connection` fail at once."""
    # shutdown() on a duplicate: pgconn.finish() from here would free memory that the stuck call still uses.
    with suppress(OSError, psycopg.Error):
        duplicate = socket.socket(fileno=os.dup(connection.fileno()))
        with duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)


class PostgresTransport:
    """One connection to Postgres, for one thread at a time.

    `conninfo` is asked at each connect, so that an embedded server may come back at another place. `receipts`: see
    `adapt.register`. `statement_seconds`: the server ends a call that takes longer (57014).
    """

    def __init__(
        self,
        conninfo: Callable[[], str],
        *,
        pooler: bool = False,
        receipts: bool = False,
        statement_seconds: float | None = None,
    ) -> None:
        self._conninfo = conninfo
        self._pooler = pooler
        self._receipts = receipts
        self._statement_seconds = statement_seconds
        self._connection: psycopg.Connection[Any] | None = None
        self._busy_since: float | None = None
        self._guard = threading.Lock()

    @property
    def stuck_for(self) -> float:
        """How long the call under way has been waiting for its answer, in seconds; 0 without one."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def call(self, function: str, params: Mapping[str, Any]) -> Rows:
        """See `Transport.call`."""
        self._busy_since = time.monotonic()
        try:
            if self._connection is None:
                opened = connect(self._conninfo(), pooler=self._pooler, receipts=self._receipts)
                with self._guard:
                    self._connection = opened
            if self._statement_seconds is None:
                return run(self._connection, function, params)
            return self._limited(self._connection, self._statement_seconds, function, params)
        except psycopg.Error as error:
            failure = translate(error, self._connection)
            if error.sqlstate in _NOT_PREPARED_HERE:
                # A transaction pooler on a port of its own: nothing is prepared from here on, and the call is repeated.
                self._pooler = True
                failure = TransportUnavailable(describe(error))
            if isinstance(failure, TransportUnavailable):
                self.close()
            raise failure from None
        finally:
            self._busy_since = None

    def _limited(
        self, connection: psycopg.Connection[Any], seconds: float, function: str, params: Mapping[str, Any]
    ) -> Rows:
        # For the transaction alone: a session behind a pooler has others after us.
        with connection.transaction():
            connection.execute("select set_config('statement_timeout', %s, true)", [f"{seconds * 1000:.0f}ms"])
            return run(connection, function, params)

    def abort(self) -> None:
        """See `Transport.abort`."""
        with self._guard:
            connection = self._connection
            if connection is None or connection.closed:
                return
            cut(connection)

    def close(self) -> None:
        """See `Transport.close`."""
        with self._guard:
            connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()


class PostgresListener:
    """A connection that waits for NOTIFY on the channel of our schema's name; a hint, polling must always suffice."""

    hears_cancels = True

    def __init__(self, conninfo: Callable[[], str]) -> None:
        self._conninfo = conninfo
        self._connection: psycopg.Connection[Any] | None = None
        self._guard = threading.Lock()

    def wait(self, seconds: float) -> list[str]:
        """Return the queues that were named within `seconds`, as soon as one is; raises TransportUnavailable."""
        try:
            if self._connection is None:
                opened = connect(self._conninfo(), pooler=False)
                with self._guard:
                    self._connection = opened
                self._connection.execute(sql.SQL("listen {}").format(sql.Identifier(current())))
            return [note.payload for note in self._connection.notifies(timeout=seconds, stop_after=1)]
        except psycopg.Error as error:
            self.close()
            raise TransportUnavailable(describe(error)) from None

    def abort(self) -> None:
        """End a wait under way, from another thread; it then raises TransportUnavailable."""
        with self._guard:
            if self._connection is not None:
                cut(self._connection)

    def close(self) -> None:
        """Close the connection; the next wait opens it again."""
        with self._guard:
            connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()
