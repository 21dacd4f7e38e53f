"""When a queue should pause by itself: the provider behind it is down, or everything fails."""

from __future__ import annotations

from typing import NamedTuple

from queue_worker.message import Ack, DeadLetter, Message, Outcome, Release, Retry


class Trip(NamedTuple):
    """The queue is to pause for `seconds`, because of `reason`."""

    seconds: float
    reason: str


class Breaker:
    """Watches the outcomes of one loop; what it wants is done by whoever owns the connection.

    `failures` in a row open it (0: they never do) for `seconds`. `wanted` is what to do next: a Trip, True for
    closing, None for nothing; the state itself is the database's, shared by all workers.
    """

    def __init__(self, failures: int, seconds: float) -> None:
        self._failures = failures
        self.seconds = seconds
        self._in_a_row = 0
        self.wanted: Trip | bool | None = None

    @property
    def watching(self) -> bool:
        """Whether a success would change anything."""
        return self._in_a_row > 0

    def saw(self, message: Message, outcome: Outcome) -> None:
        """Take in what became of a message."""
        match outcome:
            case Ack():
                self._in_a_row = 0
                if message.probe:
                    self.wanted = True
            case Release(pause=float() as pause):
                self.wanted = Trip(pause, outcome.reason)
            case Retry() | DeadLetter(reason="attempts"):
                self._in_a_row += 1
                if message.probe or 0 < self._failures <= self._in_a_row:
                    error = outcome.error.partition("\n")[0]
                    self.wanted = Trip(self.seconds, f"{self._in_a_row} failures in a row, the last: {error}")
            case _:
                # Invalid, rejected, given back: says nothing about the provider.
                pass
