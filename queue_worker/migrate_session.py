"""The database connection of a migration: no session state, one lock for all runners, errors in one clear line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from queue_worker.errors import CallRefused, ConfigError, QueueWorkerError, SchemaError, TransportUnavailable
from queue_worker.migrate_files import LOCK

Connection = psycopg.Connection[Any]
Report = Callable[[str], None]
T = TypeVar("T")

LOCK_TIMEOUT = 5.0
"""How long a statement of a migration waits for a lock, in seconds: the workers' statements queue up behind it."""

_RUNNER_WAIT = "60s"
_ATTEMPTS = 5
_BLOCKED = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
_AWAY = {"53300", "57P01", "57P02", "57P03", "57P05"}  # no connection is left; the server stops or starts
_ESCAPE = "special characters of the password must be written as %XX, for example %40 for @"


class Session:
    """A connection on which steps run one by one, each in a transaction of its own."""

    def __init__(self, connection: Connection, lock_timeout: float, report: Report) -> None:
        self.connection = connection
        self._lock_timeout = f"{int(lock_timeout * 1000)}ms"
        self._report = report

    def run(self, what: str, step: Callable[[Connection], T], text: str = "") -> T:
        """Run `step` in a transaction under the lock of all runners, again where another lock is in the way.

        `what` names the step in lines and errors; `text` is its SQL, to find the line of an error.
        """

        def tell(state: RetryCallState) -> None:
            self._report(
                f"{what} waits for a lock of another transaction: attempt {state.attempt_number} of {_ATTEMPTS} "
                f"failed, the next one comes in {state.upcoming_sleep:.1f} s"
            )

        retrying = Retrying(
            retry=retry_if_exception_type(_BLOCKED),
            wait=wait_exponential(multiplier=0.5, max=8),
            stop=stop_after_attempt(_ATTEMPTS),
            before_sleep=tell,
            reraise=True,
        )
        try:
            result: T = retrying(self._locked, step)
            return result
        except psycopg.Error as error:
            raise _explain(error, what, text) from None

    def _locked(self, step: Callable[[Connection], T]) -> T:
        with self.connection.transaction():
            # An empty path: nothing that somebody put into `public` can take the place of a built-in.
            self.connection.execute(
                """
                select pg_catalog.set_config('search_path', '', true),
                       pg_catalog.set_config('statement_timeout', '0', true),
                       pg_catalog.set_config('lock_timeout', %s, true)
                """,
                [_RUNNER_WAIT],
            )
            self.connection.execute("select pg_catalog.pg_advisory_xact_lock(%s)", [LOCK])
            self.connection.execute("select pg_catalog.set_config('lock_timeout', %s, true)", [self._lock_timeout])
            return step(self.connection)


@contextmanager
def session(
    conninfo: str, *, lock_timeout: float = LOCK_TIMEOUT, report: Report = lambda line: None
) -> Iterator[Session]:
    """Connect to `conninfo` for the length of the block; `lock_timeout` in seconds.

    Raises ConfigError where it is not a connection string, TransportUnavailable where the database cannot be
    reached or goes away, SchemaError where a privilege is missing, CallRefused for other errors of SQL. None of
    their texts holds the password.
    """
    options = _parse(conninfo)
    defaults = {"connect_timeout": "10", "application_name": "queue-worker migrate"} | options
    try:
        with psycopg.connect(
            conninfo,
            autocommit=True,
            prepare_threshold=None,  # a transaction pooler hands each transaction to another server connection
            client_encoding="utf8",
            connect_timeout=defaults["connect_timeout"],
            application_name=defaults["application_name"],
        ) as connection:
            # Under a stricter level the version read after the lock would be the one from before it.
            connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            yield Session(connection, lock_timeout, report)
    except psycopg.Error as error:
        raise _explain(error, "the schema", secret=str(options.get("password") or "")) from None


def _parse(conninfo: str) -> dict[str, Any]:
    """The options in `conninfo`; refuses what libpq would quote back together with parts of the password."""
    try:
        options = conninfo_to_dict(conninfo)
    except psycopg.Error:
        raise ConfigError(f"the database URL cannot be read; {_ESCAPE}") from None
    host, port = str(options.get("host", "")), str(options.get("port", "0"))
    if ("@" in host and not host.startswith(("/", "@"))) or not port.replace(",", "").isdecimal():
        raise ConfigError(f"the host or port in the database URL cannot be read; {_ESCAPE}")
    return options


def _explain(error: psycopg.Error, what: str, text: str = "", secret: str = "") -> QueueWorkerError:
    """The exception of ours that tells about `error` in one line."""
    line = error.diag.message_primary or (str(error).strip() or type(error).__name__).splitlines()[0]
    if secret:
        line = line.replace(secret, "***")
    code = error.sqlstate or ""
    if code.startswith("08") or code in _AWAY or (not code and isinstance(error, psycopg.OperationalError)):
        return TransportUnavailable(f"the database cannot be reached: {line}")
    if isinstance(error, _BLOCKED):
        return CallRefused(
            f"{what}: gave up after {_ATTEMPTS} attempts, because another transaction keeps a lock that it needs "
            "(see pg_stat_activity); nothing of it was applied, run `queue-worker migrate` again",
            code,
        )
    if text and error.diag.statement_position:
        what = f"{what}, line {text.count(chr(10), 0, int(error.diag.statement_position) - 1) + 1}"
    if isinstance(error, psycopg.errors.ReservedName):
        return SchemaError(f"{line} ({error.diag.message_hint})" if error.diag.message_hint else line)
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return SchemaError(f"{what}: {line}; use the role that owns the database")
    return CallRefused(f"{what}: {line}", code)
