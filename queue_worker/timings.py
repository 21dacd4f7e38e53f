"""What this process has measured: durations of handlers, lost leases, reconnects; told to the database now and then."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from queue_worker import events
from queue_worker.transport import JsonArray, Transport

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Upper bounds of the buckets, in seconds; the same as of SQL `pickup_bounds`."""

_COUNTED = {"message.lease_lost": "lost_leases", "database.back": "reconnects"}


class Durations:
    """How long the handlers of one queue ran, by bucket; filled by its loop, emptied by whoever flushes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets = [0] * (len(BOUNDS) + 1)
        self._total = 0.0

    def add(self, seconds: Sequence[float]) -> None:
        """Count the runs that a turn of the loop has collected."""
        places = [bisect_left(BOUNDS, one) for one in seconds]
        with self._lock:
            for place in places:
                self._buckets[place] += 1
            self._total += sum(seconds)

    def take(self) -> tuple[list[int], float]:
        """Return what has come since the last time: the counts by bucket, and the sum in seconds."""
        with self._lock:
            taken = self._buckets, self._total
            self._buckets, self._total = [0] * (len(BOUNDS) + 1), 0.0
        return taken

    def give_back(self, buckets: list[int], total: float) -> None:
        """Take in again what could not be told."""
        with self._lock:
            self._buckets = [one + other for one, other in zip(self._buckets, buckets, strict=True)]
            self._total += total


class Timings:
    """The measurements of all queues of one process; `flush` brings what is new to the database.

    Kept in memory until a flush went well. One whose answer was lost may count twice: what is exact is counted by the
    settle itself.
    """

    def __init__(self) -> None:
        self._durations: dict[str, Durations] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._undo: list[Callable[[], None]] = []

    def begin(self, queues: Iterable[tuple[str, Durations]]) -> None:
        """Measure these queues from now on."""
        self._durations = dict(queues)
        self._undo = [events.subscribe(name, self._count) for name in _COUNTED]

    def end(self) -> None:
        """Listen no more."""
        for undo in self._undo:
            undo()
        self._undo.clear()

    def _count(self, name: str, fields: dict[str, Any]) -> None:
        if fields.get("queue") in self._durations:
            with self._lock:
                self._counts[_COUNTED[name], fields["queue"]] += 1

    def flush(self, transport: Transport) -> None:
        """Tell the database what is new; raises what `call` raises, and then keeps it for the next time."""
        taken = {queue: durations.take() for queue, durations in self._durations.items()}
        with self._lock:
            counts, self._counts = self._counts, Counter()
        timings = [
            {"queue": queue, "bounds": list(BOUNDS), "counts": buckets, "total": total}
            for queue, (buckets, total) in taken.items()
            if any(buckets)
        ]
        found = [{"name": name, "queue": queue, "count": count} for (name, queue), count in counts.items()]
        if not timings and not found:
            return
        try:
            transport.call("queue_worker.record_timings", {"timings": JsonArray(timings), "counts": JsonArray(found)})
        except BaseException:
            for queue, measured in taken.items():
                self._durations[queue].give_back(*measured)
            with self._lock:
                self._counts.update(counts)
            raise
