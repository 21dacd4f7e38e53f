"""How long a loop waits before it looks again; all in seconds."""

from __future__ import annotations

import random

BLOCKED = 0.25
"""While a suspect waits for its turn, or a result that could not be stored."""

_GOING_TO_SLEEP = (0.02, 0.02, 0.1, 0.5)
# After the last message: a sender that did not see us asleep yet is met by polling.

_LONGEST_SLEEP = 30.0
# While NOTIFY is expected: SQL `claim` believes a sleeper for 90.

_LONGEST_REFUSED = 5.0
_LONGEST_LIMITED = 1.0
# While the fleet runs as many as it may: nobody is told when another process has ended one.

_RECONNECT_CAP = 1.0


def when_empty(cycle: float, empty_claims: int, *, listening: bool, next_due: float | None) -> float:
    """Return the pause after a claim that found less than it could take.

    `empty_claims`: how many in a row found nothing. `listening`: NOTIFY ends the pause. `next_due`: until the next
    message is due.
    """
    pause = cycle
    if listening:
        naps = _GOING_TO_SLEEP
        pause = min(pause, naps[empty_claims] if empty_claims < len(naps) else _LONGEST_SLEEP)
    if next_due is not None:
        pause = min(pause, max(0.001, next_due))
    return pause


def when_limited(cycle: float, allowed_in: float | None) -> float:
    """Return the pause while a limit of the queue lets nothing start; `allowed_in`: until the rate allows the next."""
    return min(cycle, _LONGEST_LIMITED if allowed_in is None else max(0.001, allowed_in))


def when_refused(cycle: float) -> float:
    """Return the pause after the database answered with an error: what has ended still waits to be settled."""
    return min(_LONGEST_REFUSED, max(1.0, cycle))


class Backoff:
    """Growing, jittered pauses between tries to reach the database, capped."""

    def __init__(self, first: float = 0.1, cap: float = _RECONNECT_CAP) -> None:
        self._first = first
        self._cap = cap
        self._tries = 0

    def next(self) -> float:
        """Return the next pause."""
        pause = min(self._cap, self._first * 2.0 ** min(self._tries, 16))
        self._tries += 1
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret

    def reset(self) -> None:
        """Begin again with the shortest pause."""
        self._tries = 0
