"""Wakes the loops by NOTIFY, and passes on what was cancelled; while that connection is away, they poll."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from queue_worker.errors import TransportUnavailable
from queue_worker.pauses import Backoff
from queue_worker.transport import Listener

_LOOK_SECONDS = 1.0

_CANCEL = re.compile(r"cancel (\S+) ([0-9]{1,18})\Z", re.ASCII)
"""What SQL `cancel` says; anything else is the name of a queue that has something due."""


class Sleeper(Protocol):
    """A loop that can be woken."""

    queue: str

    def wake(self) -> None: ...

    def listen(self, listening: bool) -> None: ...


class Listening:
    """Runs `listener` for `workers`; one thread calls `run`. `cancelled(queue, msg_id)` is told what was cancelled."""

    def __init__(self, listener: Listener, workers: Sequence[Sleeper], cancelled: Callable[[str, int], None]) -> None:
        self._listener = listener
        self._workers = workers
        self._cancelled = cancelled
        self._ending = threading.Event()

    def run(self) -> None:
        """Wake loops until `stop`."""
        by_queue = {worker.queue: worker for worker in self._workers}
        backoff = Backoff()
        # The first look only connects: until the loops are told, what is sent waits for their next look.
        seconds = 0.0
        while not self._ending.is_set():
            try:
                for said in self._listener.wait(seconds):
                    if said in by_queue:
                        by_queue[said].wake()
                    elif found := _CANCEL.match(said):
                        self._cancelled(found[1], int(found[2]))
                self._tell(True)
                backoff.reset()
                seconds = _LOOK_SECONDS
            except TransportUnavailable:
                seconds = 0.0
                self._tell(False)
                self._ending.wait(backoff.next())
        self._listener.close()

    def stop(self) -> None:
        """End `run` at once."""
        self._ending.set()
        self._listener.abort()

    def _tell(self, listening: bool) -> None:
        for worker in self._workers:
            worker.listen(listening)
