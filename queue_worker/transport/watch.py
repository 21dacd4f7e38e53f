"""Wakes loops where NOTIFY cannot arrive: one call for all queues of the process, often while there is work."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence

from queue_worker.errors import CallRefused, TransportUnavailable
from queue_worker.transport import Transport

_SHORTEST = 0.25
"""Between two looks while there was work within the last minute, in seconds."""

_ACTIVE = 60.0
_GROWTH = 1.3


class Watch:
    """Asks SQL `due` again and again; implements `Listener`.

    Looks every 0.25 s until nothing was found for a minute, then less and less often, at last every `cycle_seconds`.
    """

    hears_cancels = False

    def __init__(
        self,
        transport: Transport,
        queues: Sequence[str],
        cycle_seconds: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._queues = list(queues)
        self._longest = max(_SHORTEST, cycle_seconds)
        self._now = monotonic
        self._found_at = monotonic()
        self._pause = _SHORTEST
        self._next = 0.0
        self._ending = threading.Event()

    def wait(self, seconds: float) -> list[str]:
        """Return the queues that have something to do; waits at most about `seconds`, or until the next look.

        Raises TransportUnavailable.
        """
        left = self._next - self._now()
        if left > 0 and self._ending.wait(min(left, seconds)):
            return []
        if self._now() < self._next:
            return []
        try:
            rows = self._transport.call("queue_worker.due", {"queues": self._queues}).rows
        except CallRefused as error:
            # The loops hear of it by themselves, each of its own queue.
            raise TransportUnavailable(str(error)) from None
        found = [row[0] for row in rows if row[1] <= 0]
        now = self._now()
        if found:
            self._found_at = now
        self._pause = self._after(now)
        # Nobody else looks at what is due later, so the look must be there in time.
        soonest = min([self._pause, *(float(row[1]) for row in rows if row[1] > 0)])
        # Jittered: processes that were started together must not ask together for ever.
        self._next = now + max(0.02, min(soonest, self._pause * random.uniform(0.9, 1.0)))  # noqa: S311
        return found

    def _after(self, now: float) -> float:
        if now - self._found_at < _ACTIVE:
            return _SHORTEST
        return min(self._longest, self._pause * _GROWTH)

    def abort(self) -> None:
        """End a wait from another thread."""
        self._ending.set()

    def close(self) -> None:
        """Give up the connection."""
        self._transport.close()
