"""What a loop says about a database that goes away, comes back, or refuses its queue: each thing once."""

from __future__ import annotations

import time

from queue_worker import events
from queue_worker.pauses import Backoff
from queue_worker.sqlstates import UNDEFINED_TABLE


class Outage:
    """The state of the connection as one loop sees it."""

    def __init__(self, queue: str) -> None:
        self.connected = False
        self._queue = queue
        self._backoff = Backoff()
        self._lost_at: float | None = None
        self._trouble: str | None = None

    def lost(self, error: Exception) -> float:
        """The database was not reached; returns the seconds until the next try."""
        self.connected = False
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            events.emit("database.lost", queue=self._queue, error=str(error))
        return self._backoff.next()

    def found(self) -> None:
        """The database has answered."""
        self.connected = True
        self._backoff.reset()
        if self._lost_at is not None:
            events.emit("database.back", queue=self._queue, seconds=time.monotonic() - self._lost_at)
            self._lost_at = None

    def refused(self, error: str, sqlstate: str) -> None:
        """The database has answered with an error."""
        if self._trouble != error:
            self._trouble = error
            name = "queue.missing" if sqlstate == UNDEFINED_TABLE else "queue.error"
            events.emit(name, queue=self._queue, error=error)

    def accepted(self) -> None:
        """The database has done what it was asked for."""
        if self._trouble is not None:
            self._trouble = None
            events.emit("queue.back", queue=self._queue)
