"""When a worker process has done enough: after so many jobs, above so much memory, after so much time.

It then stops as after a first signal and exits with 75, for whoever started it to start it again. That bounds
what a leak in a handler or in a library can do.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from queue_worker import events
from queue_worker.errors import ConfigError

_ENDED = ("message.done", "message.retried", "message.dead")
_MEMORY_SECONDS = 1.0


def resident_bytes() -> int:
    """Return how much memory this process holds, in bytes; where the system tells no more than its peak, that."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes


class Recycling:
    """Says when the process is to be started anew; `begin` at its start, `due` now and then, `end` at its end.

    `max_jobs` counts runs that ended as done, failed or dead; `max_memory` is in bytes, `max_age` in seconds;
    None: no bound. `wake` is called when `max_jobs` is reached.
    """

    def __init__(
        self,
        max_jobs: int | None = None,
        max_memory: int | None = None,
        max_age: float | None = None,
        *,
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        self._max_jobs = max_jobs
        self._max_memory = max_memory
        self._max_age = max_age
        self._wake = wake
        self._lock = threading.Lock()
        self._jobs = 0
        self._since = time.monotonic()
        self._measured = 0.0
        self._ends: list[Callable[[], None]] = []

    def begin(self) -> None:
        """Start counting; raises ConfigError if the process needs more than `max_memory` before any work."""
        self._since = time.monotonic()
        if self._max_memory is not None and (held := resident_bytes()) > self._max_memory:
            # It would be recycled for ever and never work.
            raise ConfigError(
                f"QUEUE_WORKER_MAX_MEMORY ({_megabytes(self._max_memory)}) is less than this worker holds at its"
                f" start ({_megabytes(held)}): raise it"
            )
        if self._max_jobs is not None:
            self._ends = [events.subscribe(name, self._count) for name in _ENDED]

    def end(self) -> None:
        """Stop counting."""
        for end in self._ends:
            end()
        self._ends = []

    def due(self) -> str | None:
        """Return why the process is to stop now, in words; None while it may go on."""
        if self._max_jobs is not None and self._jobs >= self._max_jobs:
            return f"{self._jobs} jobs"
        now = time.monotonic()
        if self._max_age is not None and now - self._since >= self._max_age:
            return f"{now - self._since:.0f} s of age"
        if self._max_memory is not None and now - self._measured >= _MEMORY_SECONDS:
            self._measured = now
            if (held := resident_bytes()) > self._max_memory:
                return f"{_megabytes(held)} of memory"
        return None

    def _count(self, _name: str, _fields: dict[str, Any]) -> None:
        with self._lock:
            self._jobs += 1
            reached = self._jobs == self._max_jobs
        if reached:
            self._wake()


def _megabytes(size: int) -> str:
    return f"{size / 1_048_576:.0f} MB"
