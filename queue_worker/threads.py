"""Plain handlers: a pool of threads, each of which parses one message and calls the handler."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue
from typing import Any

from queue_worker import events, tracing
from queue_worker.executor import Executor
from queue_worker.message import ACK, Outcome, Release
from queue_worker.processor import Job
from queue_worker.run import Run


class ThreadExecutor(Executor):
    """A pool of daemon threads for one processor, started as they are needed; slots are their identifiers."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._inbox: SimpleQueue[Run | None] = SimpleQueue()
        self._nothing_waits = self._inbox.empty
        self._threads: list[threading.Thread] = []

    @property
    def backlog(self) -> int:
        """See `Executor.backlog`."""
        return self._inbox.qsize()

    def submit(self, runs: list[Run]) -> None:
        """See `Executor.submit`."""
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

    def close(self) -> None:
        """See `Executor.close`."""
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
        # As in _expired(), without the call.
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
            if tracing.on():
                with tracing.handling([message]):
                    value = self.processor.handler(job)
            else:
                value = self.processor.handler(job)
            # The short way for nearly all messages.
            return self._done(run, value) if self.results or job.settled or run.lost else ACK
        # BaseException: a handler's sys.exit() is a failure of that handler, not the end of the worker's thread.
        except BaseException as error:
            return self._failed(run, error)
