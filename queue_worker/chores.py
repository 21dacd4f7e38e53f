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
_BUDGET_SECONDS = 10.0
"""Longest that one chore goes on in one round."""

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
            for chore in self._chores:
                self._do(chore)
            self._transport.close()
            pause = _EVERY_SECONDS

    def stop(self) -> None:
        """End `run` after the step under way."""
        self._ending.set()

    def _do(self, chore: Chore) -> None:
        end = time.monotonic() + _BUDGET_SECONDS
        try:
            while chore(self._transport) and time.monotonic() < end and not self._ending.is_set():
                pass
        except TransportUnavailable:
            # The loops report the outage.
            return
        except TransportError as error:
            events.emit("chore.error", error=str(error))
