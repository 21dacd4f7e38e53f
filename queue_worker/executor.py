"""Runs handlers in threads: parse one message, call the handler, turn what happened into an outcome.

A thread does no I/O for the queue; it appends to `finished`, and the loop that owns the connection settles.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, cast

from queue_worker import events
from queue_worker.errors import TimeLimit
from queue_worker.judgement import judge
from queue_worker.message import ACK, Ack, DeadLetter, Message, Outcome, Receipt, Release, Retry
from queue_worker.processor import Job, JobContext, Processor
from queue_worker.retry import RetryPolicy


class Run:
    """One claimed message on its way through the process.

    `lost`: the lease is known to have ended, the handler has been told to stop. `deadline` is when the lease ends by
    the local monotonic clock, counted from the moment the claim was sent, so it is never too late. `settled`: the
    handler's transaction has settled the message already.
    """

    __slots__ = ("claimed", "deadline", "job", "lost", "message", "outcome", "seconds", "settled", "started")

    def __init__(self, message: Message, claimed: float, deadline: float) -> None:
        self.message = message
        self.claimed = claimed
        self.deadline = deadline
        self.started = 0.0
        self.seconds = 0.0
        self.outcome: Outcome | None = None
        self.settled = False
        self.lost = False
        self.job: Job[Any] | None = None


class Executor:
    """A pool of daemon threads for one processor.

    `wake` is called when the loop has something to do; `concurrency` threads are started as they are needed.
    """

    def __init__(
        self,
        processor: Processor,
        policy: RetryPolicy,
        context: JobContext | None,
        *,
        concurrency: int,
        settle_mark: int,
        wake: Callable[[], None],
    ) -> None:
        self.processor = processor
        self.policy = policy
        self.concurrency = concurrency
        self.context = context
        self.finished: deque[Run] = deque()
        self.running: dict[int, Run] = {}
        self.stuck: set[int] = set()
        self._settle_mark = settle_mark
        self._wake = wake
        self._inbox: SimpleQueue[Run | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._unfinished = 0

    @property
    def unfinished(self) -> int:
        """How many submitted runs have no outcome yet."""
        return self._unfinished

    @property
    def backlog(self) -> int:
        """How many submitted runs wait for a thread."""
        return self._inbox.qsize()

    @property
    def free(self) -> int:
        """How many threads are not held by a handler that outlived its time limit."""
        return self.concurrency - len(self.stuck)

    def submit(self, runs: list[Run]) -> None:
        """Hand over claimed messages; each ends in `finished` exactly once."""
        with self._lock:
            self._unfinished += len(runs)
        while len(self._threads) < min(self.concurrency, self._unfinished + len(self.stuck)):
            self._start_thread()
        for run in runs:
            self._inbox.put(run)

    def _start_thread(self) -> None:
        name = f"{self.processor.queue}-{len(self._threads) + 1}"
        # Daemons: a handler that never returns must not keep the process from ending.
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

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
        # Natural batching: while threads have work, the loop is woken for a worthwhile number of results only.
        if self._inbox.empty() or len(self.finished) >= self._settle_mark:
            self._wake()
        return True

    def close(self) -> None:
        """Let idle threads end; running handlers are left alone."""
        for _ in self._threads:
            self._inbox.put(None)

    def join(self, seconds: float) -> bool:
        """Wait up to `seconds` for the threads to end; False when a handler still runs."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        me = threading.get_ident()
        while True:
            run = self._inbox.get()
            if run is None:
                return
            now = time.monotonic()
            if not self._begin(run, me, now):
                continue
            try:
                outcome = self._run(run)
            finally:
                self.running.pop(me, None)
            run.seconds = time.monotonic() - now
            if not self.finish(run, outcome):
                self.stuck.discard(me)
                self._wake()

    def _begin(self, run: Run, thread: int, now: float) -> bool:
        # A lease that ended while the message waited may belong to somebody else by now: do not start it.
        if now > run.deadline or run.lost:
            self.finish(run, Release())
            return False
        with self._lock:
            # Given back in this very moment: it may run elsewhere already.
            if run.outcome is not None:
                return False
            run.started = now
            self.running[thread] = run
            return True

    def _run(self, run: Run) -> Outcome:
        message = run.message
        if events.wanted("message.started"):
            events.emit("message.started", queue=message.queue, msg_id=message.receipt.msg_id, attempt=message.attempt)
        try:
            payload = self.processor.parse(message.body)
            if self.context is None:
                raise RuntimeError("no database behind this executor")
            run.job = job = Job(message, payload, self.policy.max_attempts_for(message), self.context)
            self.processor.handler(job)
            run.settled = job.settled
            return ACK
        # BaseException: a handler's sys.exit() is a failure of that handler, not the end of the worker's thread.
        except BaseException as error:
            if run.job is not None and run.job.settled:
                # Its transaction has committed: whatever was raised later cannot undo that.
                run.settled = True
                events.emit("message.late_error", queue=message.queue, msg_id=message.receipt.msg_id, error=repr(error))
                return ACK
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

    def time_out(self, now: float) -> None:
        """Charge every run that has passed its time limit; its thread stays busy, its late result is refused."""
        for thread, run in list(self.running.items()):
            limit = self.policy.timeout_for(run.message)
            if run.job is not None and run.job.settled:
                continue  # its transaction has committed: nothing is left to charge
            if run.outcome is None and run.started and now - run.started > limit:
                # Before finish(): the thread that ends in this moment must find its name among the stuck ones.
                self.stuck.add(thread)
                outcome = self._timed_out(run, limit)
                if not self.finish(run, outcome) or self.running.get(thread) is not run:
                    self.stuck.discard(thread)

    def _timed_out(self, run: Run, limit: float) -> Outcome:
        error = TimeLimit(f"the handler ran longer than {limit:g} s")
        return self.judge(run.message, error, run.job, hurry=True)

    def give_back(self, runs: list[Run]) -> None:
        """Release those runs that no handler has begun with, uncharged and due at once."""
        for run in runs:
            self.finish(run, Release(), unstarted=True)

    def abandon(self, runs: list[Run], delay: float) -> None:
        """Release runs uncharged, due after `delay` seconds; those that have an outcome keep it."""
        for run in runs:
            self.finish(run, Release(delay))

    def lose(self, run: Run, receipt: Receipt) -> None:
        """Tell a run that its lease `receipt` is gone, unless it has an outcome or a newer lease."""
        with self._lock:
            if run.lost or run.outcome is not None or run.message.receipt != receipt:
                return
            if run.job is not None and run.job.settled:
                return
            run.lost = True
        events.emit("message.lease_lost", queue=run.message.queue, msg_id=receipt.msg_id)

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
