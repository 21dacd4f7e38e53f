"""Which database a producer speaks to, and what the answers mean to its caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from queue_worker.config import QueueOptions, Settings, load_settings
from queue_worker.config_options import resolve
from queue_worker.errors import CallRefused, QueueNotFound, SchemaError, UsageError
from queue_worker.sqlstates import UNDEFINED_TABLE
from queue_worker.transport import Rows, Transport

if TYPE_CHECKING:
    from queue_worker.transport.sharing import AnyPool

_NO_SCHEMA = ("42883", "3F000")
_MISTAKES = ("22", "0A000")


class Source:
    """The database of some queues; nothing is read or opened before the first call.

    `given`: a URL, the host program's `psycopg_pool.ConnectionPool`, or None for what the settings say (environment
    and `.env`). A URL or settings mean one small pool for the whole process, however many queues use it.
    """

    def __init__(self, given: str | AnyPool | None = None) -> None:
        self._given = given
        self._settings: Settings | None = None

    @contextmanager
    def using(self, settings: Settings) -> Iterator[None]:
        """Speak to the database of `settings` while the block runs, unless one was given."""
        before, self._settings = self._settings, settings
        try:
            yield
        finally:
            self._settings = before

    def transport(self) -> Transport:
        """Return where calls go; raises ConfigError or UsageError."""
        # Here, so that a program which only registers handlers does not load the driver.
        from queue_worker.opening import producer_pool
        from queue_worker.transport.sharing import host_pool

        if self._given is None:
            return producer_pool(self._known_settings())
        return producer_pool(self._given) if isinstance(self._given, str) else host_pool(self._given)

    def options(self, queue: str, decorator: Mapping[str, Any]) -> QueueOptions:
        """Return the options of a queue: from the settings where these name the database, else as decorated."""
        if self._given is None or self._settings is not None:
            return self._known_settings().options_for(queue, decorator)
        return resolve(queue, (), decorator)

    def _known_settings(self) -> Settings:
        if self._settings is None:
            self._settings = load_settings()
        return self._settings

    def call(self, function: str, params: Mapping[str, Any], connection: Any = None) -> Rows:
        """Call a function of schema `queue_worker`: in a transaction of its own, or in that of `connection`.

        Raises QueueNotFound, UsageError, SchemaError, another CallRefused, or TransportUnavailable (it may have
        committed).
        """
        return explained(lambda: self._call(f"queue_worker.{function}", params, connection))

    def _call(self, function: str, params: Mapping[str, Any], connection: Any) -> Rows:
        if connection is None:
            return self.transport().call(function, params)
        from queue_worker.transport.sharing import call_in

        return call_in(connection, function, params)


def explained(call: Callable[[], Rows]) -> Rows:
    """Return what `call` returns; an error of the database that is the caller's mistake is raised as one."""
    try:
        return call()
    except CallRefused as error:
        raise mistake(error) from None


def mistake(error: CallRefused) -> Exception:
    """Return the exception for `error` that says whose mistake it is; `error` itself if it is nobody's."""
    if error.sqlstate == UNDEFINED_TABLE:
        return QueueNotFound(str(error))
    if error.sqlstate in _NO_SCHEMA:
        return SchemaError(f"the database lacks a function of this version ({error}): run `queue-worker migrate`")
    return UsageError(str(error)) if error.sqlstate.startswith(_MISTAKES) else error
