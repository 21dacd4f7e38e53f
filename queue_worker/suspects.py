"""Which loop of a process may take a suspect: a message whose earlier start ended with its process.

At most one suspect runs in a process at a time, beside its normal work. One that was lost several times waits until
the process is empty and runs alone, so that a message that kills its process takes no neighbour with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

NONE, BESIDE, ALONE = 0, 1, 2


class SuspectGate:
    """Shared by all loops of a process.

    `is_empty` tells whether nothing is held in the whole process; `wake` makes all loops look again. Every claim stands
    between `enter` and `answer`. What a claim brings must be held before its `answer`.
    """

    def __init__(self, is_empty: Callable[[], bool], wake: Callable[[], None] = lambda: None) -> None:
        self._is_empty = is_empty
        self._wake = wake
        self._lock = threading.Lock()
        # Claims under way: what they bring is not yet held, so the process only looks empty.
        self._claiming: set[str] = set()
        self._asking: str | None = None
        self._running: str | None = None
        self._runs_alone = False
        self._wants_alone: str | None = None
        self._line: list[str] = []

    def enter(self, queue: str) -> int | None:
        """Begin a claim of `queue`; returns what it may take: NONE, BESIDE or ALONE.

        None: claim nothing now, because a suspect runs alone or waits for the process to empty.
        """
        with self._lock:
            level = self._level(queue)
            if level is not None:
                self._claiming.add(queue)
            if level in (BESIDE, ALONE):
                self._asking = queue
            return level

    def _level(self, queue: str) -> int | None:
        if self._running is not None:
            return None if self._runs_alone else NONE
        if self._wants_alone is not None:
            return ALONE if self._wants_alone == queue and not self._claiming and self._is_empty() else None
        # First come, first served: a busy queue must not keep an idle one from its suspect.
        if self._asking is not None or (self._line and self._line[0] != queue):
            return NONE
        return BESIDE

    def answer(
        self, queue: str, level: int, *, took: bool = False, alone: bool = False, waiting: str | None = None
    ) -> None:
        """End the claim that `enter` allowed with `level`.

        `took`: it brought a suspect, `alone`: and nothing else; `waiting`: 'suspect' or 'alone' for what it left.
        """
        with self._lock:
            self._claiming.discard(queue)
            if level != NONE:
                self._asking = None
                self._leave(queue)
            if took:
                self._running = queue
                self._runs_alone = level == ALONE and alone
            if level == ALONE:
                self._wants_alone = None
            elif waiting == "alone" and self._wants_alone is None:
                self._wants_alone = queue
            if waiting == "suspect" and not took and queue not in self._line:
                self._line.append(queue)
        if level == ALONE and not took:
            self._wake()

    def pass_by(self, queue: str) -> None:
        """`queue` has no room for a claim: those behind it in the line need not wait for it."""
        if self._line:
            with self._lock:
                self._leave(queue)

    def _leave(self, queue: str) -> None:
        if queue in self._line:
            self._line.remove(queue)

    def ended(self, queue: str) -> None:
        """The suspect of `queue` has an outcome."""
        with self._lock:
            if self._running != queue:
                return
            wanted = self._runs_alone or self._wants_alone is not None or bool(self._line)
            self._running = None
            self._runs_alone = False
        if wanted:
            self._wake()

    def emptied(self) -> None:
        """A queue holds nothing any more."""
        if self._wants_alone is not None and self._is_empty():
            self._wake()
