"""The database as the API uses it: calls from any thread, bounded in number and time, and one look shared by all."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from queue_worker import migrate
from queue_worker.api.answers import ApiError, plain
from queue_worker.config import Settings, check_queue_name
from queue_worker.errors import CallRefused, ConfigError, TransportUnavailable
from queue_worker.opening import open_database
from queue_worker.sqlstates import OTHER_ENVIRONMENT, UNDEFINED_TABLE, passes
from queue_worker.transport import Rows, Transport

CONNECTIONS = 4
LONGEST_CALL = 10.0
"""Seconds a page or a call may take before its connection is cut."""

INTERVAL = 5.0
"""Seconds between two looks at all queues, however many pages are open."""

_WAIT = 5.0
_MIGRATE = "the database lacks a function of this version: run `queue-worker migrate`"
_SAID = (
    ("57014", 503, "the database took too long"),
    ("42883", 503, _MIGRATE),
    ("3F000", 503, _MIGRATE),
    ("42501", 403, "the server's role in the database may not do this"),
    ("22", 422, "a value does not fit"),
)
"""By the beginning of the SQLSTATE."""
_TOO_MANY = "PT429"
_OURS = ("22023", "0A000", "55006", OTHER_ENVIRONMENT)
"""Raised by our functions with a line for whoever called them."""


class Backend:
    """Calls SQL functions of schema `queue_worker` and says errors as HTTP does; raises ApiError.

    Opens nothing before the first call. `healthy` says whether the loops of a worker in this process turn (None: there
    is none).
    """

    def __init__(self, settings: Settings, healthy: Callable[[], bool] | None = None) -> None:
        self.settings = settings
        self._healthy = healthy or (lambda: True)
        self._free: list[Transport] = []
        self._slots = threading.BoundedSemaphore(CONNECTIONS)
        self._opening = threading.Lock()
        self._database: Any = None
        self._watch: contextlib.ExitStack | None = None
        self._looking = threading.Lock()
        self._looked: tuple[float, dict[str, Any]] | None = None

    def close(self) -> None:
        """Close every connection; the next call would open them again."""
        with self._opening:
            database, self._database = self._database, None
            watch, self._watch = self._watch, None
            self._free.clear()
        if watch is not None:
            watch.close()
        if database is not None:
            database.close()

    def rows(self, function: str, /, **params: Any) -> list[dict[str, Any]]:
        """Call a function and return its rows; raises ApiError."""
        for name, value in params.items():
            # What Postgres cannot store; bodies were looked at when they were read.
            if isinstance(value, str) and ("\0" in value or (not value.isprintable() and _lone_surrogate(value))):
                raise ApiError(422, f"{name} holds a character that cannot be stored")
        try:
            return self.raw(f"queue_worker.{function}", params).dicts()
        except TransportUnavailable:
            raise ApiError(503, "the database cannot be reached", {"Retry-After": "5"}) from None
        except ConfigError:
            raise ApiError(503, "the server is not set up: see its log") from None
        except CallRefused as error:
            raise refusal(error) from None

    def value(self, function: str, /, **params: Any) -> Any:
        """Call a function that returns one value."""
        rows = self.rows(function, **params)
        return next(iter(rows[0].values())) if rows else None

    def raw(self, function: str, params: Any) -> Rows:
        """Call a function; raises what transports raise, and ApiError where every connection is busy."""
        if not self._slots.acquire(timeout=_WAIT):
            raise ApiError(503, "the server is busy", {"Retry-After": "1"})
        try:
            with self._borrowed() as transport:
                return transport.call(function, params)
        finally:
            self._slots.release()

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[Transport]:
        with self._opening:
            if self._database is None:
                self._database = open_database(self.settings)
                self._watch = contextlib.ExitStack()
                self._watch.enter_context(self._database.watched(LONGEST_CALL))
            if self._free:
                transport = self._free.pop()
            else:
                # Shorter than the watch: a connection that is cut leaves its query running.
                transport = self._database.transport(statement_seconds=LONGEST_CALL * 0.8)
        try:
            yield transport
        finally:
            with self._opening:
                self._free.append(transport)

    # ------------------------------------------------------------------------------------------------------- looks

    def snapshot(self) -> dict[str, Any]:
        """Return all queues, workers and open alerts as JSON has them, at most `INTERVAL` seconds old; raises ApiError.

        One query at a time, whoever asks.
        """
        with self._looking:
            if self._looked is None or time.monotonic() - self._looked[0] >= INTERVAL * 0.9:
                found: dict[str, Any] = plain(self.value("snapshot", minutes=60))
                self._looked = time.monotonic(), found
            return self._looked[1]

    def forget(self) -> None:
        """Let the next `snapshot` look again: somebody changed something."""
        with self._looking:
            self._looked = None

    def check_queue(self, name: str) -> str:
        """Return `name` if it can name a queue; raises ApiError 422 before anything reaches the database."""
        try:
            return check_queue_name(name)
        except ConfigError as error:
            raise ApiError(422, str(error)) from None

    def ready(self) -> bool:
        """Whether the loops turn, the database answers and its schema fits."""
        if not self._healthy():
            return False
        try:
            migrate.require(migrate.check_through(self.raw))
        except (TransportUnavailable, ConfigError, CallRefused, ApiError):
            return False
        return True


def _lone_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def refusal(error: CallRefused) -> ApiError:
    """Return what the caller is told of an error of the database: its own mistake in the words of our functions.

    Nothing else: a text of the server may quote SQL, data or an address.
    """
    state = error.sqlstate
    if state == UNDEFINED_TABLE:
        return ApiError(404, str(error).partition(" (")[0])
    if state in _OURS or state.startswith("QW"):
        return ApiError(422, str(error))
    if state == _TOO_MANY:
        return ApiError(429, str(error), {"Retry-After": "60"})
    for beginning, status, line in _SAID:
        if state.startswith(beginning):
            return ApiError(status, line)
    if passes(state):
        return ApiError(503, "the database is busy: try again", {"Retry-After": "1"})
    raise error
