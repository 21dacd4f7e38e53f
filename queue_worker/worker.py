"""The loop of one queue: settle what has ended, claim what can start, hand it to the threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from operator import attrgetter

from queue_worker import events, sqlstates, tracing
from queue_worker.appetite import Appetite
from queue_worker.breaker import Breaker, Trip
from queue_worker.broker import Broker, Turn
from queue_worker.config import QueueOptions
from queue_worker.errors import CallRefused, TransportUnavailable
from queue_worker.executor import Executor
from queue_worker.message import expired
from queue_worker.outage import Outage
from queue_worker.pauses import BLOCKED, when_empty, when_limited, when_refused
from queue_worker.run import Run, announce
from queue_worker.settling import Settling
from queue_worker.suspects import ALONE, NONE, SuspectGate
from queue_worker.timings import Durations

_LOST = attrgetter("lost")


class QueueWorker:
    """Runs one queue until `stop` was called and everything it held is settled.

    One thread calls `run`; `cycle` is one round trip and returns how long to wait before the next.
    """

    def __init__(
        self,
        broker: Broker,
        executor: Executor,
        options: QueueOptions,
        gate: SuspectGate,
        wake: threading.Event,
        *,
        listening: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue = broker.queue
        self.executor = executor
        self.options = options
        self.held: dict[int, Run] = {}
        self.listening = listening
        self.empty_claims = 0
        self.looked = 0.0
        self.taken = 0
        self.durations = Durations()
        self.last_turn = monotonic()
        self._broker = broker
        self._gate = gate
        self._appetite = Appetite(executor, options.batch_size)
        self._wake = wake
        self._now = monotonic
        self._settling = Settling(broker.queue, self._drop)
        self._stopping = False
        self._outage = Outage(broker.queue)
        self._breaker = executor.breaker = Breaker(options.breaker_failures, options.breaker_seconds)
        executor.on_trip = self._give_back_unstarted

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
        self._give_back_unstarted()
        self._wake.set()

    def _give_back_unstarted(self) -> None:
        self.executor.give_back(list(self.held.values()))

    def abandon(self, delay: float) -> None:
        """Give back what still runs, due after `delay` seconds; late results are refused from here on."""
        self.executor.abandon(list(self.held.values()), delay)
        self._wake.set()

    def put_off(self, runs: list[Run]) -> None:
        """Give back `runs`, which have waited half a lease for a thread, and do not claim them ahead at once again."""
        self._appetite.wait_seen(self.options.lease_seconds / 2)
        self.executor.give_back(runs)

    @property
    def connected(self) -> bool:
        """Whether the last round trip reached the database."""
        return self._outage.connected

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
            # Stopped and empty-handed: nobody would wake this loop any more.
            if delay > 0 and not (self._stopping and not self.held):
                self._wake.wait(delay)

    def cycle(self) -> float:
        """Do one round trip if there is reason for one; returns the seconds until the next is due."""
        self._collect()
        # Results that cannot be stored are held on to, but not without limit.
        full = self._stopping or self._settling.refused >= self.options.batch_size
        count = 0 if full else self._appetite.count()
        level = self._gate.enter(self.queue) if count else NONE
        if level is None:
            count = 0
        elif not count:
            self._gate.pass_by(self.queue)
        if not self._settling and count == 0 and self._breaker.wanted is None:
            self.last_turn = self._now()
            return BLOCKED if level is None else self.options.cycle_seconds
        sleep = self.listening and (self.empty_claims > 0 or self.executor.unfinished == 0)
        sent = self._now()
        begun = tracing.now()
        try:
            self._switch_breaker()
            turn = self._broker.turn(self._settling.settlements(), count, suspects=level or NONE, sleep=sleep)
        except TransportUnavailable as error:
            self._answer(count, level)
            return self._lose(error)
        except CallRefused as error:
            self._answer(count, level)
            return self._refuse(str(error), error.sqlstate)
        self._outage.found()
        tracing.claimed(turn.messages, begun)
        self._settling.answered(turn, begun)
        self._take(turn, level, sent)
        self._answer(count, level, turn)
        pause = self._pause(turn, count)
        if count and self.idle:
            self.looked = sent
        return pause if level is not None else min(pause, BLOCKED)

    def _switch_breaker(self) -> None:
        wanted = self._breaker.wanted
        if wanted is None:
            return
        if isinstance(wanted, Trip):
            self._broker.trip(wanted.seconds, self._breaker.seconds, wanted.reason)
            events.emit("breaker.opened", queue=self.queue, seconds=wanted.seconds, reason=wanted.reason)
        else:
            self._broker.close_breaker()
            events.emit("breaker.closed", queue=self.queue)
        self._breaker.did(wanted)

    def _answer(self, count: int, level: int | None, turn: Turn | None = None) -> None:
        if count and level is not None:
            messages = turn.messages if turn else []
            # max(): a claim brings at most one suspect, and a generator over a full batch would cost as much as it.
            took = bool(messages) and max(map(_LOST, messages)) > 0
            self._gate.answer(
                self.queue, level, took=took, alone=len(messages) == 1, waiting=turn.waiting if turn else None
            )

    def _collect(self) -> None:
        """Move finished runs to the settlements; those that their own transaction settled are done already."""
        finished = self.executor.finished
        lengths: list[float] = []
        while finished:
            run = finished.popleft()
            if self.held.get(run.message.receipt.msg_id) is not run:
                self._drop(run)
                continue
            if run.seconds:
                lengths.append(run.seconds)
            if run.settled:
                self._drop(run)
                tracing.settled(run.message, run.outcome, tracing.now())
                announce(self.queue, run)
            else:
                self._settling.add(run)
        self._appetite.learn(sum(lengths), len(lengths))
        if lengths:
            self.durations.add(lengths)

    def _drop(self, run: Run) -> None:
        # Another run may stand there: the message was claimed again, or its queue was made anew.
        message = run.message
        msg_id = message.receipt.msg_id
        if self.held.get(msg_id) is run:
            del self.held[msg_id]
        if message.lost:
            self._gate.ended(self.queue)
        if not self.held:
            self._gate.emptied()

    def _take(self, turn: Turn, level: int | None, sent: float) -> None:
        for msg_id, lost in turn.buried:
            events.emit(
                "message.dead",
                queue=self.queue,
                msg_id=msg_id,
                attempt=lost,
                reason="lost",
                error=f"its process ended {lost} times while it ran",
                seconds=0.0,
            )
        if not turn.messages:
            return
        self.taken += len(turn.messages)
        deadline = sent + self.options.lease_seconds
        runs = []
        for message in turn.messages:
            msg_id = message.receipt.msg_id
            old = self.held.get(msg_id)
            if old is not None and self.executor.renew(old, message, deadline):
                continue
            run = self.held[msg_id] = Run(message, sent, deadline)
            runs.append(run)
            if message.expired:
                self.executor.finish(run, expired(message))
            if message.lost:
                events.emit("suspect.started", queue=self.queue, msg_id=msg_id, lost=message.lost, alone=level == ALONE)
        if self._stopping or self._breaker.tripped:
            # That came while the claim was under way, and could not see these.
            self.executor.give_back(runs)
        self.executor.submit(runs)

    def _pause(self, turn: Turn, count: int) -> float:
        self.last_turn = self._now()
        if turn.error and turn.error.startswith(sqlstates.READ_ONLY):
            # A server that became a standby answers like this for ever: another connection may reach the new one.
            self._broker.transport.close()
        if turn.error:
            return self._refuse(turn.error, turn.error[:5])
        self._outage.accepted()
        if turn.paused and self.held:
            # What has not begun waits in the queue, where the pause is seen; the trial is what the pause waits for.
            self.executor.give_back([run for run in self.held.values() if not run.message.probe])
        if turn.limited:
            return when_limited(self.options.cycle_seconds, turn.next_due)
        if turn.messages:
            self.empty_claims = 0
            if len(turn.messages) == count or turn.waiting:
                return 0.0
        elif count and not turn.waiting:
            self.empty_claims += 1
        if turn.waiting or self._settling:
            return BLOCKED
        if count == 0:
            return self.options.cycle_seconds
        return when_empty(
            self.options.cycle_seconds,
            self.empty_claims,
            listening=self.listening and not turn.paused,
            next_due=turn.next_due,
        )

    def _lose(self, error: TransportUnavailable) -> float:
        self._settling.unanswered()
        self.last_turn = self._now()
        return self._outage.lost(error)

    def _refuse(self, error: str, sqlstate: str) -> float:
        """The database answered with an error: this queue waits, the others go on."""
        self.last_turn = self._now()
        self._outage.refused(error, sqlstate)
        if sqlstate == sqlstates.UNDEFINED_TABLE:
            self._settling.forget()
        return when_refused(self.options.cycle_seconds)
