"""When a queue should pause by itself: the provider behind it is down, or everything fails."""

from __future__ import annotations

import threading
from typing import NamedTuple

from queue_worker.message import Ack, DeadLetter, Message, Outcome, Release, Retry


class Trip(NamedTuple):
    """The queue is to pause for `seconds`, because of `reason`."""

    seconds: float
    reason: str


class Breaker:
    """Watches the outcomes of one queue in one process; what it wants is done by whoever owns the connection.

    `failures` in a row open it (0: they never do) for `seconds`. The state itself is the database's, shared by all
    workers. `saw` is called from any thread.
    """

    def __init__(self, failures: int = 0, seconds: float = 10.0) -> None:
        self._failures = failures
        self.seconds = seconds
        self._in_a_row = 0
        self._lock = threading.Lock()
        self._wanted: Trip | bool | None = None

    @property
    def tripped(self) -> bool:
        """Whether the pause is wanted, and not yet known to the database."""
        return isinstance(self._wanted, Trip)

    @property
    def wanted(self) -> Trip | bool | None:
        """What to do next: a Trip, True for closing, None for nothing."""
        return self._wanted

    def did(self, wanted: Trip | bool) -> None:
        """What was wanted has been done; something else that is wanted since stays."""
        with self._lock:
            if self._wanted is wanted:
                self._wanted = None

    @property
    def watching(self) -> bool:
        """Whether a success would change anything."""
        return self._in_a_row > 0

    def saw(self, message: Message, outcome: Outcome) -> bool:
        """Take in what became of a message; whether the queue should pause because of it."""
        with self._lock:
            return self._saw(message, outcome)

    def _saw(self, message: Message, outcome: Outcome) -> bool:
        match outcome:
            case Ack():
                self._in_a_row = 0
                if message.probe:
                    self._wanted = True
            case Release(pause=float() as pause):
                self._wanted = Trip(pause, outcome.reason)
                return True
            case Retry() | DeadLetter(reason="attempts"):
                self._in_a_row += 1
                if message.probe or 0 < self._failures <= self._in_a_row:
                    error = outcome.error.partition("\n")[0]
                    why = "the trial failed" if message.probe else f"{self._in_a_row} failures in a row, the last"
                    self._wanted = Trip(self.seconds, f"{why}: {error}")
                    return True
            case _:
                # Invalid, rejected, given back: says nothing about the provider.
                pass
        return False
