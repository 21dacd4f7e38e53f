"""Handlers that take one or several messages at a time: what happens to each when the handler ends.

A batch handler that raises charges nobody: each message without an outcome runs again as a batch of one, and only that
run counts. A message that has failed or was lost before runs as a batch of one from the start, so that it takes no
neighbour with it.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

from queue_worker import events
from queue_worker.executor import Executor
from queue_worker.message import Message, Outcome, Release
from queue_worker.processor import Job
from queue_worker.run import Run

Unit = list[Run]
"""What one call of the handler gets."""


class UnitExecutor(Executor):
    """Runs units; `batch_size` is the most messages in one, and 1 for a handler that takes a single job."""

    def __init__(self, *arguments: Any, batch_size: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._batch_size = batch_size if self.processor.batch else 1
        self._units: dict[int, Unit] = {}

    @abstractmethod
    def _put(self, units: Sequence[Unit]) -> None:
        """Let `units` run as slots get free."""

    # ---------------------------------------------------------------------------------------------- see Executor

    @property
    def free(self) -> int:
        """See `Executor.free`."""
        return (self.concurrency - len(self.stuck)) * self._batch_size

    def live(self) -> list[tuple[int, Run]]:
        """See `Executor.live`."""
        return [(slot, run) for slot, unit in list(self._units.items()) for run in unit]

    def _in_slot(self, slot: int, run: Run) -> bool:
        return run in self._units.get(slot, ())

    def submit(self, runs: list[Run]) -> None:
        """See `Executor.submit`."""
        with self._lock:
            self._unfinished += len(runs)
        alone = [run for run in runs if self._batch_size == 1 or run.message.failures or run.message.lost]
        others = [run for run in runs if run not in alone] if len(alone) < len(runs) else []
        size = self._batch_size
        self._put([[run] for run in alone] + [others[at : at + size] for at in range(0, len(others), size)])

    # ---------------------------------------------------------------------------------------------- a unit's life

    def _begin_unit(self, unit: Unit, slot: int) -> Unit:
        """Return the runs of `unit` that start now, in `slot`; the others have an outcome."""
        now = time.monotonic()
        fresh = [run for run in unit if not self._expired(run, now)]
        with self._lock:
            # Given back in this very moment: it may run elsewhere already.
            begun = [run for run in fresh if run.outcome is None]
            for run in begun:
                run.started = now
            if begun:
                self._units[slot] = begun
                self.running[slot] = begun[0]
        return begun

    def _jobs(self, unit: Unit) -> tuple[Unit, list[Job[Any]]]:
        """Return those of `unit` whose payload is valid, and their jobs; the others are settled alone."""
        runs, jobs = [], []
        for run in unit:
            message = run.message
            if events.wanted("message.started"):
                msg_id, attempt = message.receipt.msg_id, message.attempt
                events.emit("message.started", queue=message.queue, msg_id=msg_id, attempt=attempt)
            try:
                job = self._new_job(run, self.processor.parse(message.body))
            except Exception as error:
                self.finish(run, self.judge(message, error))
                continue
            if self.processor.batch:
                job.decided_by(partial(self._decide, run, job))
            runs.append(run)
            jobs.append(job)
        return runs, jobs

    def _decide(self, run: Run, job: Job[Any], error: BaseException | None, result: Any) -> None:
        """Take what a batch handler says about one of its messages."""
        # A handler that comes too late says it about a job that is another one's by now.
        if run.job is job and run.outcome is None:
            run.seconds = time.monotonic() - run.started
            self.finish(run, self._outcome(run, error, result))

    def _outcome(self, run: Run, error: BaseException | None, value: Any) -> Outcome:
        if error is None:
            try:
                return self._done(run, value)
            except Exception as refused:
                error = refused
        return self._failed(run, error)

    def _end_unit(self, unit: Unit, slot: int) -> None:
        self._units.pop(slot, None)
        self.running.pop(slot, None)
        seconds = time.monotonic() - unit[0].started
        for run in unit:
            run.seconds = run.seconds or seconds

    def _conclude(self, unit: Unit, slot: int, error: BaseException | None, value: Any) -> None:
        """Give every run of `unit` that has none its outcome; the handler has ended with `error` or `value`."""
        value = None if self.processor.batch else value
        again = []
        for run in unit:
            if run.outcome is not None:
                continue
            if error is not None and len(unit) > 1 and not self._spared(run, error):
                again.append(run)
            else:
                self.finish(run, self._outcome(run, error, value))
        self.stuck.discard(slot)
        self._run_alone(again)
        self._wake()

    def _spared(self, run: Run, error: BaseException) -> bool:
        """Whether `run` needs no run of its own to tell who is to blame: it is done, gone, or goes back uncharged."""
        settled = run.job is not None and run.job.settled
        return settled or run.lost or isinstance(self._pure(run.message, error), Release)

    def _pure(self, message: Message, error: BaseException) -> Outcome | None:
        try:
            return self.policy.outcome_for(message, error)
        except Exception:
            return None

    def _run_alone(self, runs: Unit) -> None:
        with self._lock:
            waiting = [run for run in runs if run.outcome is None]
            for run in waiting:
                run.job, run.started, run.seconds = None, 0.0, 0.0
                run.claimed = time.monotonic()
        self._put([[run] for run in waiting])
