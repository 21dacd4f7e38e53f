"""Runs handlers: what all kinds of them share. A run gets its outcome exactly once, whoever is faster.

Each kind has slots, as many as handlers may run at the same time. What runs in them does no I/O for the queue: outcomes
are appended to `finished`, and the loop that owns the connection settles.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from queue_worker import events
from queue_worker.breaker import Breaker
from queue_worker.errors import QueueWorkerError, TimeLimit
from queue_worker.judgement import judge
from queue_worker.message import ACK, Ack, Message, Outcome, Receipt, Release
from queue_worker.processor import Job, JobContext, Processor
from queue_worker.results import result_text
from queue_worker.retry import RetryPolicy
from queue_worker.run import Run


class Executor(ABC):
    """Runs the handler of one processor, at most `concurrency` at a time.

    `wake` is called when the loop has something to do; `settle_mark` results are worth waking it while handlers still
    have work. `results`: what a handler returns is kept. `running` and `stuck` are by slot; a stuck slot is one whose
    handler outlived its time limit.
    """

    stop_seconds = 0.0
    """How long a handler that was told to stop may take before its slot counts as lost."""

    def __init__(
        self,
        processor: Processor,
        policy: RetryPolicy,
        context: JobContext | None,
        *,
        concurrency: int,
        settle_mark: int,
        wake: Callable[[], None],
        results: bool = False,
    ) -> None:
        self.processor = processor
        self.policy = policy
        self.concurrency = concurrency
        self.context = context
        self.results = results
        self.finished: deque[Run] = deque()
        self.running: dict[int, Run] = {}
        self.stuck: set[int] = set()
        self._settle_mark = settle_mark
        self._wake = wake
        self._lock = threading.Lock()
        self._unfinished = 0
        self._stuck_at = 0.0
        # The loop's own, once there is one: what it does at once when the queue should pause.
        self.breaker = Breaker()
        self.on_trip: Callable[[], None] = lambda: None
        self._nothing_waits: Callable[[], bool] = lambda: not self.backlog

    # ---------------------------------------------------------------------------------------------- what a kind does

    @abstractmethod
    def submit(self, runs: list[Run]) -> None:
        """Hand over claimed messages; each ends in `finished` exactly once."""

    @property
    @abstractmethod
    def backlog(self) -> int:
        """How many submitted runs wait for a slot."""

    @abstractmethod
    def close(self) -> None:
        """Let idle slots end; running handlers are left alone."""

    def stop_handler(self, slot: int, run: Run) -> None:  # noqa: B027 - most kinds have nothing to do
        """Stop what runs in `slot` if it is still `run`; a thread cannot be stopped."""

    # ---------------------------------------------------------------------------------------------- what is asked for

    @property
    def unfinished(self) -> int:
        """How many submitted runs have no outcome yet."""
        return self._unfinished

    @property
    def free(self) -> int:
        """How many messages can be under way beside the stuck slots."""
        return self.concurrency - len(self.stuck)

    def exhausted(self, now: float) -> bool:
        """Whether every slot is held by a handler that outlived its time limit and does not end."""
        return len(self.stuck) >= self.concurrency and now - self._stuck_at >= self.stop_seconds

    @property
    def stuck_threads(self) -> set[int]:
        """The threads that handlers without time hold: their database calls may be cut."""
        return set(self.stuck)

    def live(self) -> list[tuple[int, Run]]:
        """Return what runs now, as (slot, run)."""
        return list(self.running.items())

    def _in_slot(self, slot: int, run: Run) -> bool:
        return self.running.get(slot) is run

    # ---------------------------------------------------------------------------------------------- outcomes

    def finish(self, run: Run, outcome: Outcome, *, unstarted: bool = False) -> bool:
        """Give a run its outcome; False when it has one already, so that a late result changes nothing.

        `unstarted`: only if no handler has begun with it.
        """
        with self._lock:
            if run.outcome is not None or (unstarted and run.started):
                return False
            run.outcome = outcome
            self._unfinished -= 1
        self.finished.append(run)
        seen = outcome is not ACK or run.message.probe or self.breaker.watching
        if seen and self.breaker.saw(run.message, outcome):
            # Here, before this slot takes the next one: a provider that is down is not to be asked once more.
            self.on_trip()
        # Natural batching: while slots have work, the loop is woken for a worthwhile number of results only.
        if self._nothing_waits() or len(self.finished) >= self._settle_mark:
            self._wake()
        return True

    def _expired(self, run: Run, now: float) -> bool:
        """Give back a run whose lease ended while it waited: the message may belong to somebody else by now."""
        if now > run.deadline or run.lost:
            self.finish(run, Release())
            return True
        return False

    def _new_job(self, run: Run, payload: Any) -> Job[Any]:
        if self.context is None:
            raise RuntimeError("no database behind this executor")
        run.job = job = Job(run.message, payload, self.policy.max_attempts_for(run.message), self.context)
        return job

    def _done(self, run: Run, value: Any) -> Outcome:
        """Return the outcome of a run whose handler returned `value`; raises for a result that cannot be kept."""
        if run.job is not None and run.job.settled:
            run.settled = True
            if self.results:
                self._keep(run, partial(result_text, value))
        elif run.lost:
            # Its message is gone or somebody else's: nothing of this run may be written.
            return Release()
        elif self.results:
            return Ack(result_text(value))
        return ACK

    def _keep(self, run: Run, text: Callable[[], str]) -> None:
        # The message was settled with the handler's rows, before there was a result: it follows, if it can.
        queue, msg_id = run.message.queue, run.message.receipt.msg_id
        try:
            if self.context is not None:
                params = {"queue": queue, "msg_id": msg_id, "value": text()}
                self.context.call("queue_worker.keep_result", params)
        except QueueWorkerError as error:
            events.emit("message.late_error", queue=queue, msg_id=msg_id, error=str(error))

    def _failed(self, run: Run, error: BaseException) -> Outcome:
        """Return the outcome of a run whose handler raised `error`."""
        message = run.message
        if run.job is not None and run.job.settled:
            # Its transaction has committed: whatever was raised later cannot undo that.
            run.settled = True
            events.emit("message.late_error", queue=message.queue, msg_id=message.receipt.msg_id, error=repr(error))
            return ACK
        if run.lost:
            return Release()
        return self.judge(message, error, run.job)

    def judge(
        self, message: Message, error: BaseException, job: Job[Any] | None = None, *, hurry: bool = False
    ) -> Outcome:
        """Return what becomes of a message after `error`; never raises. `job`: that of the run, where it has one."""

        def told() -> Job[Any]:
            if job is not None and job.payload is not None:
                return job
            try:
                payload = self.processor.parse(message.body)
            except Exception:
                payload = None
            # Callbacks exist only beside a database; `call` on it would be their own error.
            context = cast(JobContext, self.context)
            return Job(message, payload, self.policy.max_attempts_for(message), context)

        return judge(self.policy, self.processor.error_callbacks, message, error, told, hurry=hurry)

    # ---------------------------------------------------------------------------------------------- from other threads

    def time_out(self, now: float) -> None:
        """Charge every run that has passed its time limit; its late result is refused.

        The slot stays busy until the handler ends, which it does soon where it can be stopped.
        """
        for slot, run in self.live():
            job = run.job
            if run.outcome is not None or not run.started or (job is not None and job.settled):
                continue  # settled: its transaction has committed, and nothing is left to charge
            limit = self.policy.timeout_for(run.message) + (job.extra_seconds if job is not None else 0.0)
            if now - run.started > limit:
                # Before finish(): the handler that ends in this moment must find its slot among the stuck ones.
                self.stuck.add(slot)
                self._stuck_at = now
                outcome = self._timed_out(run, limit)
                if not self.finish(run, outcome) or not self._in_slot(slot, run):
                    self.stuck.discard(slot)
                else:
                    self.stop_handler(slot, run)

    def _timed_out(self, run: Run, limit: float) -> Outcome:
        error = TimeLimit(f"the handler ran longer than {limit:g} s")
        return self.judge(run.message, error, run.job, hurry=True)

    def give_back(self, runs: Sequence[Run]) -> None:
        """Release those runs that no handler has begun with, uncharged and due at once."""
        for run in runs:
            self.finish(run, Release(), unstarted=True)

    def abandon(self, runs: Sequence[Run], delay: float) -> None:
        """Release runs uncharged, due after `delay` seconds; those that have an outcome keep it."""
        for run in runs:
            self.finish(run, Release(delay))
        self._stop_all(set(runs))

    def lose(self, run: Run, receipt: Receipt, *, cancelled: bool = False) -> None:
        """Tell a run that its lease `receipt` is gone, unless it has an outcome or a newer lease.

        `cancelled`: because the message was taken out of the queue.
        """
        with self._lock:
            if run.lost or run.outcome is not None or run.message.receipt != receipt:
                return
            # Inside its transaction the row is locked, so nobody can have taken it: it is gone because of the commit.
            if run.job is not None and (run.job.settled or run.job.in_transaction):
                return
            run.lost, run.cancelled = True, cancelled
        name = "message.cancelled" if cancelled else "message.lease_lost"
        events.emit(name, queue=run.message.queue, msg_id=receipt.msg_id)
        self._stop_all({run})

    def _stop_all(self, runs: set[Run]) -> None:
        for slot, run in self.live():
            if run in runs:
                self.stop_handler(slot, run)

    def renew(self, run: Run, message: Message, deadline: float) -> bool:
        """Let a run go on under a new claim of its own message, so that it is not run twice in one process.

        False for another message with the same id, and for a run that was told to stop: its work may be half done.
        """
        held = run.message
        with self._lock:
            if not run.lost and held.receipt.enqueued_at == message.receipt.enqueued_at:
                held.receipt, held.failures, held.lost = message.receipt, message.failures, message.lost
                run.deadline = deadline
                return True
        self.lose(run, held.receipt)
        return False
