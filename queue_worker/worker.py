"""The loop of one queue: settle what has ended, claim what can start, hand it to the threads."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable

from queue_worker import events
from queue_worker.broker import Broker, Settlement, Turn
from queue_worker.config import QueueOptions
from queue_worker.errors import CallRefused, TransportUnavailable
from queue_worker.executor import Executor, Run
from queue_worker.message import Release
from queue_worker.suspects import ALONE, NONE, SuspectGate

_PREFETCH_SECONDS = 0.25
"""How much work may wait for a thread: enough to hide a round trip, too little to age a lease."""

_GOING_TO_SLEEP = (0.02, 0.02, 0.1, 0.5)
"""Pauses after the last message, in seconds: a sender that did not see us asleep yet is met by polling."""

_RECONNECT_CAP = 1.0
_MISSING_QUEUE = "42P01"

_INFRASTRUCTURE = ("25006", "40", "53", "55P03", "57", "58")
"""SQLSTATEs of a database in trouble: the same settlement may be sent again, and costs nobody an attempt."""


class Backoff:
    """Growing, jittered pauses between tries, capped; in seconds."""

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


class QueueWorker:
    """Runs one queue until `stop` was called and everything it held is settled.

    One thread calls `run`; `cycle` is one round trip and returns how long to wait before the next.
    """

    def __init__(self, broker: Broker, executor: Executor, options: QueueOptions, gate: SuspectGate,
                 wake: threading.Event, *, listening: bool = False, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.queue = broker.queue
        self.executor = executor
        self.options = options
        self.held: dict[int, Run] = {}
        self.listening = listening
        self.empty_claims = 0
        self.last_turn = monotonic()
        self.connected = False
        self._broker = broker
        self._gate = gate
        self._wake = wake
        self._now = monotonic
        self._unsent: list[Run] = []
        self._resend = False
        self._stopping = False
        self._mean: float | None = None
        self._backoff = Backoff()
        self._lost_at: float | None = None
        self._trouble: str | None = None

    # ------------------------------------------------------------------------------------------ from other threads

    def wake(self) -> None:
        """Make the loop look at once."""
        self._wake.set()

    def listen(self, listening: bool) -> None:
        """Say whether NOTIFY reaches this process."""
        if listening != self.listening:
            self.listening = listening
            # Whoever fell asleep before has not asked to be woken, or cannot be any more: look again.
            self.empty_claims = 0
            self._wake.set()

    def stop(self) -> None:
        """Stop claiming and give back what has not started; running handlers go on."""
        self._stopping = True
        self.executor.give_back([run for run in list(self.held.values()) if not run.started])
        self._wake.set()

    def abandon(self, delay: float) -> None:
        """Give back what still runs, due after `delay` seconds; late results are refused from here on."""
        self.executor.give_back(list(self.held.values()), delay)
        self._wake.set()

    @property
    def busy(self) -> int:
        """How many handlers are running."""
        return len(self.executor.running)

    @property
    def idle(self) -> bool:
        """Whether the queue had nothing due at the last look and nothing is under way."""
        return self.empty_claims > 0 and not self.held

    # ------------------------------------------------------------------------------------------ the loop's own thread

    def run(self) -> None:
        """Cycle until stopped and empty-handed."""
        while not (self._stopping and not self.held):
            self._wake.clear()
            delay = self.cycle()
            if delay > 0:
                self._wake.wait(delay)

    def cycle(self) -> float:
        """Do one round trip if there is reason for one; returns the seconds until the next is due."""
        self._collect()
        blocked = self._stopping or self._gate.blocked(self.queue)
        count = 0 if blocked else self._capacity()
        if not self._unsent and count == 0:
            self.last_turn = self._now()
            return 0.25 if blocked and not self._stopping else self.options.cycle_seconds
        level = self._gate.ask(self.queue) if count else NONE
        sleep = self.listening and (self.empty_claims > 0 or self.executor.unfinished == 0)
        sent = self._now()
        batch = self._unsent
        try:
            turn = self._broker.turn([Settlement(run.message.receipt, run.outcome) for run in batch if run.outcome],
                                     count, suspects=level, sleep=sleep)
        except TransportUnavailable as error:
            self._gate.answer(self.queue, level, took=False, waiting=None)
            return self._lose(error)
        except CallRefused as error:
            self._gate.answer(self.queue, level, took=False, waiting=None)
            return self._refuse(str(error), error.sqlstate)
        self._unsent = []
        self._found_again()
        self._settled(batch, turn)
        self._take(turn, level, sent)
        return self._pause(turn, count)

    def _capacity(self) -> int:
        free = self.executor.free
        if free <= 0:
            return 0
        prefetch = 0
        if self._mean is not None:
            prefetch = min(2 * self.options.batch_size, math.ceil(free * _PREFETCH_SECONDS / max(self._mean, 1e-6)))
        room = free + prefetch - self.executor.unfinished
        count = min(self.options.batch_size, room)
        # While threads have plenty to do, a claim of a few messages would only cost a round trip.
        if count < self.options.batch_size // 2 and self.executor.backlog > free:
            return 0
        return max(0, count)

    def _collect(self) -> None:
        """Move finished runs to the settlements; those that their own transaction settled are done already."""
        finished = self.executor.finished
        total, count = 0.0, 0
        while finished:
            run = finished.popleft()
            if run.seconds:
                total += run.seconds
                count += 1
            if run.settled:
                self._drop(run)
                announce(self.queue, run)
            else:
                self._unsent.append(run)
        if count:
            mean = total / count
            self._mean = mean if self._mean is None else 0.7 * self._mean + 0.3 * mean

    def _drop(self, run: Run) -> None:
        self.held.pop(run.message.receipt.msg_id, None)
        if run.message.suspect:
            self._gate.ended(self.queue)

    def _settled(self, batch: list[Run], turn: Turn) -> None:
        resent, self._resend = self._resend, False
        for run in batch:
            msg_id = run.message.receipt.msg_id
            kind, detail = turn.missed.get(msg_id, ("", "")) if turn.missed else ("", "")
            if kind == "error":
                events.emit("queue.error", queue=self.queue, msg_id=msg_id, error=detail)
                if detail.startswith(_INFRASTRUCTURE):
                    self._unsent.append(run)
                    continue
            self._drop(run)
            # 'gone' after a lost answer: the settlement had committed all the same.
            if not kind or (kind == "gone" and resent):
                announce(self.queue, run)
            elif kind != "error" and not run.lost:
                events.emit("message.lease_lost", queue=self.queue, msg_id=msg_id)

    def _take(self, turn: Turn, level: int, sent: float) -> None:
        took = any(message.suspect for message in turn.messages)
        self._gate.answer(self.queue, level, took=took, waiting=turn.waiting)
        for msg_id, lost in turn.buried:
            events.emit("message.dead", queue=self.queue, msg_id=msg_id, attempt=lost, reason="lost",
                        error=f"its process ended {lost} times while it ran", seconds=0.0)
        if not turn.messages:
            return
        deadline = sent + self.options.lease_seconds
        runs = [Run(message, sent, deadline) for message in turn.messages]
        for run in runs:
            self.held[run.message.receipt.msg_id] = run
            if run.message.suspect:
                events.emit("suspect.started", queue=self.queue, msg_id=run.message.receipt.msg_id,
                            lost=run.message.lost, alone=level == ALONE)
        self.executor.submit(runs)
        if self._stopping:
            # stop() came while the claim was under way and could not see these.
            self.executor.give_back(runs)

    def _pause(self, turn: Turn, count: int) -> float:
        self.last_turn = self._now()
        if turn.error and turn.error.startswith("25006"):
            # A server that became a standby answers like this for ever: another connection may reach the new one.
            self._broker.transport.close()
        if turn.error:
            return self._refuse(turn.error, turn.error[:5])
        if self._trouble is not None:
            self._trouble = None
            events.emit("queue.back", queue=self.queue)
        if turn.messages:
            self.empty_claims = 0
            if len(turn.messages) == count or turn.waiting:
                return 0.0
        elif count and not turn.paused:
            self.empty_claims += 1
        if turn.waiting or self._unsent:
            return 0.25
        if count == 0:
            return self.options.cycle_seconds
        pause = self.options.cycle_seconds
        if self.listening and not turn.paused and self.empty_claims < len(_GOING_TO_SLEEP):
            pause = min(pause, _GOING_TO_SLEEP[self.empty_claims])
        if turn.next_due is not None:
            pause = min(pause, max(0.001, turn.next_due))
        return pause

    # ------------------------------------------------------------------------------------------ trouble

    def _lose(self, error: TransportUnavailable) -> float:
        # What was sent may have committed; sending it again is safe, because every receipt is spent by its settle.
        self._resend = self._resend or bool(self._unsent)
        self.connected = False
        if self._lost_at is None:
            self._lost_at = self._now()
            events.emit("database.lost", queue=self.queue, error=str(error))
        self.last_turn = self._now()
        return self._backoff.next()

    def _found_again(self) -> None:
        self.connected = True
        self._backoff.reset()
        if self._lost_at is not None:
            events.emit("database.back", queue=self.queue, seconds=self._now() - self._lost_at)
            self._lost_at = None

    def _refuse(self, error: str, sqlstate: str) -> float:
        """The database answered with an error: this queue waits, the others go on."""
        self.last_turn = self._now()
        if self._trouble != error:
            self._trouble = error
            missing = sqlstate == _MISSING_QUEUE
            events.emit("queue.missing" if missing else "queue.error", queue=self.queue, error=error)
        if sqlstate == _MISSING_QUEUE:
            for run in self._unsent:
                self._drop(run)
            self._unsent = []
        return max(1.0, self.options.cycle_seconds)


def announce(queue: str, run: Run) -> None:
    """Emit what became of a run; its settlement has committed."""
    outcome, message = run.outcome, run.message
    name = {"Ack": "message.done", "Retry": "message.retried", "DeadLetter": "message.dead",
            "Release": "message.released"}[type(outcome).__name__]
    if not events.wanted(name):
        return
    fields: dict[str, object] = {"queue": queue, "msg_id": message.receipt.msg_id, "attempt": message.attempt,
                                 "seconds": run.seconds}
    if run.job is not None:
        fields["note"] = run.job.note
    for extra in ("delay", "error", "kind", "reason"):
        value = getattr(outcome, extra, None)
        if value is not None and not isinstance(outcome, Release):
            fields[extra] = value
    events.emit(name, **fields)
