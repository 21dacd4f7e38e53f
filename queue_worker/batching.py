"""Batch handlers that are plain functions: a pool of threads, each of which runs one batch at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

from queue_worker import tracing
from queue_worker.units import Unit, UnitExecutor


class BatchExecutor(UnitExecutor):
    """A pool of daemon threads, started as they are needed; slots are their identifiers."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._inbox: SimpleQueue[Unit | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._open_units = 0

    @property
    def backlog(self) -> int:
        """See `Executor.backlog`."""
        return self._inbox.qsize() * self._batch_size

    def close(self) -> None:
        """See `Executor.close`."""
        for _ in self._threads:
            self._inbox.put(None)

    def _put(self, units: Sequence[Unit]) -> None:
        with self._lock:
            self._open_units += len(units)
            while len(self._threads) < min(self.concurrency, self._open_units):
                name = f"{self.processor.queue}-{len(self._threads) + 1}"
                # Daemons: a handler that never returns must not keep the process from ending.
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        for unit in units:
            self._inbox.put(unit)

    def _work(self) -> None:
        me = threading.get_ident()
        while True:
            unit = self._inbox.get()
            if unit is None:
                return
            begun = self._begin_unit(unit, me)
            if begun:
                self._run(begun, me)
            with self._lock:
                self._open_units -= 1

    def _run(self, unit: Unit, slot: int) -> None:
        error: BaseException | None = None
        runs, jobs = self._jobs(unit)
        try:
            if jobs:
                with tracing.handling([run.message for run in runs]):
                    self.processor.handler(jobs)
        # BaseException: a handler's sys.exit() is a failure of that handler, not the end of the worker's thread.
        except BaseException as raised:
            error = raised
        self._end_unit(unit, slot)
        self._conclude(runs, slot, error, None)
