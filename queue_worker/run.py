"""One claimed message on its way through the process, and the event that tells what became of it."""

from __future__ import annotations

from typing import Any

from queue_worker import events
from queue_worker.message import Ack, DeadLetter, Message, Outcome, Release, Retry
from queue_worker.processor import Job


class Run:
    """One claimed message on its way through the process.

    `lost`: the lease is known to have ended, the handler has been told to stop; `cancelled`: because somebody took the
    message out of the queue. `deadline` is when the lease ends by the local monotonic clock, counted from the moment
    the claim was sent, so it is never too late. `settled`: the handler's transaction has settled the message already.
    """

    __slots__ = (
        "cancelled",
        "claimed",
        "deadline",
        "job",
        "lost",
        "message",
        "outcome",
        "seconds",
        "settled",
        "started",
    )

    def __init__(self, message: Message, claimed: float, deadline: float) -> None:
        self.message = message
        self.claimed = claimed
        self.deadline = deadline
        self.started = 0.0
        self.seconds = 0.0
        self.outcome: Outcome | None = None
        self.settled = False
        self.lost = False
        self.cancelled = False
        self.job: Job[Any] | None = None


_EVENTS = {Ack: "message.done", Retry: "message.retried", DeadLetter: "message.dead", Release: "message.released"}


def outcomes_wanted() -> bool:
    """Whether anybody listens to what becomes of messages."""
    return any(map(events.wanted, _EVENTS.values()))


def announce(queue: str, run: Run) -> None:
    """Emit what became of a run; its settlement has committed."""
    outcome, message = run.outcome, run.message
    name = _EVENTS[type(outcome)]
    if not events.wanted(name):
        return
    fields: dict[str, object] = {
        "queue": queue,
        "msg_id": message.receipt.msg_id,
        "attempt": message.attempt,
        "seconds": run.seconds,
    }
    if run.job is not None:
        fields["note"] = run.job.note
    for extra in ("delay", "error", "kind", "reason"):
        value = getattr(outcome, extra, None)
        if value is not None and not isinstance(outcome, Release):
            fields[extra] = value
    events.emit(name, **fields)
