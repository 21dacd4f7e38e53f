"""What has ended and is not settled yet: sent with the next round trip, and again where its answer was lost."""

from __future__ import annotations

from collections.abc import Callable

from queue_worker import events, sqlstates, tracing
from queue_worker.broker import Settlement, Turn
from queue_worker.message import Ack, DeadLetter
from queue_worker.run import Run, announce, outcomes_wanted


class Settling:
    """The runs of one loop that have an outcome; `drop` lets go of one that is settled."""

    def __init__(self, queue: str, drop: Callable[[Run], None]) -> None:
        self._queue = queue
        self._drop = drop
        self._unsent: list[Run] = []
        self._kept: list[Run] = []
        self._resend = False

    def __bool__(self) -> bool:
        return bool(self._unsent)

    @property
    def refused(self) -> int:
        """How many outcomes the database could not store so far."""
        return len(self._kept)

    def add(self, run: Run) -> None:
        """Settle a run with the next round trip."""
        self._unsent.append(run)

    def settlements(self) -> list[Settlement]:
        """Return what is to be settled now."""
        return [
            Settlement(run.message.receipt, run.outcome, run.message.counted) for run in self._unsent if run.outcome
        ]

    def unanswered(self) -> None:
        """No answer came. It may have committed; sending it again is safe, because a settle spends its receipt."""
        self._resend = self._resend or bool(self._unsent)

    def forget(self) -> None:
        """Let go of everything: the queue is not there any more."""
        for run in self._unsent:
            self._drop(run)
        self._unsent, self._kept = [], []

    def answered(self, turn: Turn, begun: int = 0) -> None:
        """Take in what became of `settlements`, which were sent at `begun` (see `tracing.settled`)."""
        batch, self._unsent = self._unsent, []
        resent, self._resend = self._resend, False
        before, self._kept = self._kept, []
        if not turn.missed:
            told = outcomes_wanted()
            for run in batch:
                self._drop(run)
                tracing.settled(run.message, run.outcome, begun)
                if told:
                    announce(self._queue, run)
            return
        for run in batch:
            msg_id = run.message.receipt.msg_id
            kind, detail = turn.missed.get(msg_id, ("", ""))
            if kind == "error":
                if run not in before:
                    events.emit("queue.error", queue=self._queue, msg_id=msg_id, error=detail)
                if _settles_again(run, detail):
                    self._kept.append(run)
                    continue
            self._drop(run)
            # 'gone' after a lost answer: the settlement had committed all the same.
            if not kind or (kind == "gone" and resent):
                tracing.settled(run.message, run.outcome, begun)
                announce(self._queue, run)
            elif kind != "error" and not run.lost:
                events.emit("message.lease_lost", queue=self._queue, msg_id=msg_id)
        self._unsent += self._kept


def _settles_again(run: Run, detail: str) -> bool:
    # Sent again as it is, and nobody is charged.
    if sqlstates.passes(detail[:5]):
        return True
    if not isinstance(run.outcome, Ack):
        return False
    # Its work is done but cannot be written down, say because the archive is gone. It must not run again, neither as a
    # retry nor as a suspect; so a person gets it, with the reason.
    run.outcome = DeadLetter("unstored", f"the handler succeeded, but its result could not be stored: {detail}")
    return True
