"""What a worker tidies up now and then: chores of its queues, and one of what belongs to no queue."""

from __future__ import annotations

from queue_worker.chores import Chore
from queue_worker.config import QueueOptions
from queue_worker.transport import Transport

_PRUNED_AT_ONCE = 5000
_RESENT_AT_ONCE = 1000
_DAY = 86_400.0


def queue_chores(queue: str, options: QueueOptions) -> list[Chore]:
    """Return the chores of one queue: delete what it has kept long enough, send what its triggers could not."""
    ages = {
        "archive_seconds": options.archive_days * _DAY,
        "failure_seconds": _seconds(options.failure_days),
        "dead_seconds": _seconds(options.dead_days),
    }

    def prune(transport: Transport) -> bool:
        return _more(transport, "prune", _PRUNED_AT_ONCE, queue=queue, **ages)

    def resend(transport: Transport) -> bool:
        return _more(transport, "resend_unsent", _RESENT_AT_ONCE, queue=queue)

    return [prune, resend]


def shared_chores() -> list[Chore]:
    """Return the chore that every worker does: signs of life, the audit, ledgers, failures of dropped queues."""
    return [lambda transport: _more(transport, "prune_shared", _PRUNED_AT_ONCE)]


def _seconds(days: int) -> float | None:
    """Return an age in seconds; None, which keeps all, for 0 days."""
    return days * _DAY if days else None


def _more(transport: Transport, function: str, max_count: int, **params: object) -> bool:
    """Call a function that does at most `max_count` a call; whether there is more to do."""
    rows = transport.call(f"queue_worker.{function}", {**params, "max_count": max_count}).rows
    return bool(rows) and rows[0][0] >= max_count
