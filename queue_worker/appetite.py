"""How many messages a loop may claim, so that its threads have work and none waits long."""

from __future__ import annotations

from queue_worker.executor import Executor

_PREFETCH_SECONDS = 0.25
"""How much work may wait for a thread: enough to hide a round trip, too little to age a lease."""


class Appetite:
    """Learns how long handlers take; for one loop, which claims at most `batch_size` at a time."""

    def __init__(self, executor: Executor, batch_size: int) -> None:
        self._executor = executor
        self._batch_size = batch_size
        self._mean: float | None = None

    def learn(self, seconds: float, count: int) -> None:
        """Take in that `count` handlers ran for `seconds` in all."""
        if count:
            mean = seconds / count
            self._mean = mean if self._mean is None else 0.7 * self._mean + 0.3 * mean

    def wait_seen(self, seconds: float) -> None:
        """Take in that a message has waited for a thread for `seconds`."""
        self._mean = max(self._mean or 0.0, seconds)

    def count(self) -> int:
        """Return how many messages to claim now."""
        free = self._executor.free
        if free <= 0:
            return 0
        ahead = 0
        if self._mean is not None:
            # Rounded down: beside slow handlers even one message more would wait here while another process is idle.
            ahead = min(2 * self._batch_size, int(free * _PREFETCH_SECONDS / max(self._mean, 1e-6)))
        count = min(self._batch_size, free + ahead - self._executor.unfinished)
        # While threads have plenty to do, a claim of a few messages would only cost a round trip.
        if count < self._batch_size // 2 and self._executor.backlog > free:
            return 0
        return max(0, count)
