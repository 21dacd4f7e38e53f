"""`async def` handlers, single and batch: tasks on the process's one event loop, at most `concurrency` at a time."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Sequence
from contextvars import Context
from functools import partial
from typing import Any

from queue_worker import tracing
from queue_worker.loop_thread import LoopThread
from queue_worker.run import Run
from queue_worker.units import Unit, UnitExecutor

_BLOCKED_SECONDS = 1.0
"""A cancel that the loop has not come to for so long finds it blocked, in seconds."""


class AsyncExecutor(UnitExecutor):
    """Runs a task per unit; slots are negative numbers, so that none is taken for a thread.

    Everything whose name begins with `_on_loop` runs on the loop's thread.
    """

    stop_seconds = 5.0

    def __init__(self, *arguments: Any, loop: LoopThread, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._loop = loop
        self._inbox: deque[Unit] = deque()
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._slots = itertools.count(-1, -1)
        self._cancelling: dict[int, float] = {}

    @property
    def backlog(self) -> int:
        """See `Executor.backlog`."""
        return len(self._inbox) * self._batch_size

    @property
    def stuck_threads(self) -> set[int]:
        """See `Executor.stuck_threads`: the loop's, where a handler without time blocks it."""
        asked = list(self._cancelling.values())
        blocked = bool(asked) and time.monotonic() - min(asked) > _BLOCKED_SECONDS
        return {self._loop.ident} if blocked and self._loop.ident is not None else set()

    def close(self) -> None:
        """See `Executor.close`."""

    def stop_handler(self, slot: int, run: Run) -> None:
        """See `Executor.stop_handler`: cancels the task, once it has no message left that it could still finish."""
        if any(one.outcome is None and not one.lost for one in self._units.get(slot, ())):
            return
        self._cancelling.setdefault(slot, time.monotonic())
        self._loop.call(self._on_loop_cancel, slot, run)

    def _put(self, units: Sequence[Unit]) -> None:
        self._inbox.extend(units)
        self._loop.call(self._on_loop_start)

    def _on_loop_start(self) -> None:
        while self._inbox and len(self._tasks) < self.concurrency:
            unit = self._inbox.popleft()
            slot = next(self._slots)
            begun = self._begin_unit(unit, slot)
            if begun:
                # A context of its own: nothing of one handler's may be seen by the next.
                task = asyncio.get_running_loop().create_task(self._call(begun), context=Context())
                self._tasks[slot] = task
                task.add_done_callback(partial(self._on_loop_end, slot, begun))

    async def _call(self, unit: Unit) -> tuple[Unit, BaseException | None, Any]:
        runs, jobs = self._jobs(unit)
        try:
            # A task has a context of its own, and so has its current span.
            with tracing.handling([run.message for run in runs]):
                value = await self.processor.handler(jobs if self.processor.batch else jobs[0]) if jobs else None
        # BaseException: raised in a task, SystemExit would end the loop with all its handlers.
        except BaseException as error:
            return runs, error, None
        return runs, None, value

    def _on_loop_end(self, slot: int, unit: Unit, task: asyncio.Task[tuple[Unit, BaseException | None, Any]]) -> None:
        self._tasks.pop(slot, None)
        self._end_unit(unit, slot)
        # Cancelled before its first step: nothing of the handler has run.
        runs, error, value = (unit, asyncio.CancelledError(), None) if task.cancelled() else task.result()
        self._cancelling.pop(slot, None)
        self._conclude(runs, slot, error, value)
        self._on_loop_start()

    def _on_loop_cancel(self, slot: int, run: Run) -> None:
        self._cancelling.pop(slot, None)
        task = self._tasks.get(slot)
        if task is not None and self._in_slot(slot, run):
            task.cancel()
