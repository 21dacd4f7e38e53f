"""Which loop of a process may take a suspect: a message whose earlier start ended with its process.

At most one suspect runs in a process at a time, beside its normal work. One that was lost several times waits until
the process is empty and runs alone, so that a message that kills its process takes no neighbour with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

NONE, BESIDE, ALONE = 0, 1, 2


class SuspectGate:
    """Shared by all loops of a process; `is_empty` tells whether nothing is claimed in the whole process."""

    def __init__(self, is_empty: Callable[[], bool]) -> None:
        self._is_empty = is_empty
        self._lock = threading.Lock()
        self._asking: str | None = None
        self._running: str | None = None
        self._runs_alone = False
        self._wants_alone: str | None = None
        self._line: list[str] = []

    def blocked(self, queue: str) -> bool:
        """Whether `queue` must claim nothing now, because a suspect runs alone or waits for the process to empty."""
        with self._lock:
            if self._running is not None:
                return self._runs_alone
            return self._wants_alone is not None and not (self._wants_alone == queue and self._is_empty())

    def ask(self, queue: str) -> int:
        """Return what the next claim of `queue` may take: NONE, BESIDE or ALONE; `answer` must follow."""
        with self._lock:
            if self._running is not None or self._asking is not None:
                return NONE
            if self._wants_alone is not None:
                if self._wants_alone != queue or not self._is_empty():
                    return NONE
                self._asking = queue
                return ALONE
            # First come, first served: a busy queue must not keep an idle one from its suspect.
            if self._line and self._line[0] != queue:
                return NONE
            self._asking = queue
            return BESIDE

    def answer(self, queue: str, level: int, *, took: bool, waiting: str | None) -> None:
        """Say what came of the claim that `ask` allowed with `level`: whether it took a suspect, and what waits."""
        with self._lock:
            if level != NONE:
                self._asking = None
                if queue in self._line:
                    self._line.remove(queue)
            if took:
                self._running = queue
                self._runs_alone = level == ALONE
            if level == ALONE:
                self._wants_alone = None
            elif waiting == "alone" and self._wants_alone is None:
                self._wants_alone = queue
            if waiting == "suspect" and not took and queue not in self._line:
                self._line.append(queue)

    def ended(self, queue: str) -> None:
        """The suspect of `queue` has an outcome."""
        with self._lock:
            if self._running == queue:
                self._running = None
                self._runs_alone = False
