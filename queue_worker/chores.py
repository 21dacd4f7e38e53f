"""Housekeeping on a thread and connection of its own: a slow delete must never hold up an extension of leases."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from queue_worker import events
from queue_worker.errors import TransportError, TransportUnavailable
from queue_worker.transport import Transport

_FIRST_SECONDS = 60.0
_EVERY_SECONDS = 600.0
_BUDGET_SECONDS = 60.0
"""Longest that one chore goes on in one round."""

_REST = 3.0
"""Rest after each step, in lengths of the step: a quarter of one connection's time is all that chores take."""

Chore = Callable[[Transport], bool]
"""Does a little of its work; True when there is more."""


class Housekeeper:
    """Does each of `chores` every ten minutes, over a connection that is closed in between."""

    def __init__(self, transport: Transport, chores: Sequence[Chore]) -> None:
        self._transport = transport
        self._chores = chores
        self._ending = threading.Event()

    def run(self) -> None:
        """Work until `stop`; a chore that fails never keeps the others from theirs."""
        pause = _FIRST_SECONDS
        while not self._ending.wait(pause):
            self.work()
            pause = _EVERY_SECONDS

    def work(self) -> None:
        """Do each chore once, as far as its time goes."""
        for chore in self._chores:
            self._do(chore)
        self._transport.close()

    def stop(self) -> None:
        """End `run` after the step under way."""
        self._ending.set()

    def _do(self, chore: Chore) -> None:
        start = time.monotonic()
        end = start + _BUDGET_SECONDS
        try:
            # It rests in between: messages go first.
            while chore(self._transport) and time.monotonic() < end:
                if self._ending.wait((time.monotonic() - start) * _REST):
                    return
                start = time.monotonic()
        except TransportUnavailable:
            # The loops report the outage.
            return
        except TransportError as error:
            events.emit("chore.error", error=str(error))
