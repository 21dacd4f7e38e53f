"""Threads under watch, and the two-phase stop.

The supervising thread does no I/O: it notices signals, time limits, a thread that died and a connection that stands
still, whatever the database does.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

from loguru import logger

from queue_worker import events
from queue_worker.lease import LeaseKeeper, overdue
from queue_worker.worker import QueueWorker

CRASHED, GRACE_EXCEEDED, RECYCLED = 1, 70, 75
_TICK = 0.25
_RELEASED_DELAY = 5.0
"""After the grace, in seconds: long enough that the message does not start while its old handler still dies."""

_REPEAT_SECONDS = 1.0
"""A second signal within this time is the same one: a terminal and a process manager both send it."""


class Signals:
    """Counts stop requests; a repetition within a second counts once.

    `repeats=False`: signals never count twice, because several senders pass on the same wish (a parent, a terminal,
    a process manager that signals the whole tree); only `hurry` does.
    """

    def __init__(self, *, repeats: bool = True) -> None:
        self._repeats = repeats
        self.count = 0
        self.number = 0
        self._last = 0.0
        self.arrived = threading.Event()

    def request(self, number: int = 0) -> None:
        """Ask for a stop; for whoever embeds the service."""
        self._count(number)
        self.arrived.set()

    def hurry(self, number: int = 0) -> None:
        """Ask for the end at once, as a second signal does."""
        self.count = max(self.count, 1) + 1
        self.number = number or self.number
        self.arrived.set()

    def _count(self, number: int) -> None:
        now = time.monotonic()
        if self.count == 0 or (self._repeats and now - self._last > _REPEAT_SECONDS):
            self.count += 1
            self.number = number
            self._last = now
            if self.count > 2:
                # Nothing orderly is left to try: what is held comes back when its lease ends.
                os._exit(128 + number)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM while the block runs, if this is the main thread; restores the old handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, _frame: FrameType | None) -> None:
            # Not arrived.set(): the handler interrupts the main thread, which may be holding that event's lock. Whoever
            # waits looks at the count in short steps.
            self._count(number)

        old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, previous in old.items():
                signal.signal(number, previous)


class Side(Protocol):
    """What works beside the loops on a thread of its own."""

    def run(self) -> None:
        """Work until `stop`."""

    def stop(self) -> None:
        """End `run` soon."""


class Supervisor:
    """Runs the loops of a process until a stop is asked for, and stops them.

    `grace` in seconds is what running handlers get. `cut_stuck` aborts calls that stand still. `report` is called
    about every five seconds with whether all is well, `stopping` once when the stop begins. `side` are further
    threads by name. `recycle` says why the process is to be started anew, if it is. `burst`: stop as soon as no
    queue has anything due.
    """

    def __init__(
        self,
        workers: Sequence[QueueWorker],
        keeper: LeaseKeeper,
        *,
        signals: Signals,
        grace: float,
        cut_stuck: Callable[[], Any],
        report: Callable[[bool], None],
        side: Mapping[str, Side],
        stopping: Callable[[], None] = lambda: None,
        recycle: Callable[[], str | None] = lambda: None,
        burst: bool = False,
    ) -> None:
        self.workers = workers
        self.keeper = keeper
        self.signals = signals
        self._grace = grace
        self._cut_stuck = cut_stuck
        self._report = report
        self._side = side
        self._stopping = stopping
        self._recycle = recycle
        self._burst = burst
        self._dead: list[str] = []
        self._threads: list[threading.Thread] = []
        self._loops: list[threading.Thread] = []
        self._reported = 0.0
        self._idle_since, self._taken = 0.0, -1

    @property
    def healthy(self) -> bool:
        """Whether every loop is alive and turning; says nothing about the database."""
        now = time.monotonic()
        # A loop that has ended well turns no more, while those of other queues may still have their grace.
        turning = [w for w, loop in zip(self.workers, self._loops, strict=False) if loop.is_alive()]
        late = [w.queue for w in turning if now - w.last_turn > w.options.cycle_seconds + 60]
        return not self._dead and not late and now - self.keeper.last_tick < 60

    def run(self) -> int:
        """Run until stopped; returns the exit code (see DESIGN, exit codes)."""
        for worker in self.workers:
            self._loops.append(self._start(worker.run, f"loop-{worker.queue}"))
        self._start(self.keeper.run, "keeper")
        for name, part in self._side.items():
            self._start(part.run, name)
        code = self._watch()
        events.emit("worker.stopping", signal=self.signals.number, code=code)
        self._stopping()
        code = self._stop(code)
        events.emit("worker.stopped", code=code)
        return code

    def _start(self, target: Callable[[], None], name: str) -> threading.Thread:
        def supervised() -> None:
            try:
                target()
            except BaseException as error:
                # A loop that died must end the process: a worker without it looks alive and does nothing.
                self._dead.append(name)
                logger.opt(exception=error).critical("thread {} died", name)
                self.signals.arrived.set()

        thread = threading.Thread(target=supervised, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _watch(self) -> int:
        """Wait for a reason to stop; returns the exit code it calls for."""
        while True:
            self.signals.arrived.wait(_TICK)
            if self._dead:
                return CRASHED
            if self.signals.count:
                return 0
            self._tick()
            now = time.monotonic()
            if stuck := [w.queue for w in self.workers if w.executor.exhausted(now)]:
                events.emit("worker.stuck", queues=stuck)
                return RECYCLED
            if reason := self._recycle():
                events.emit("worker.recycling", reason=reason)
                return RECYCLED
            if self._burst and self._drained(now):
                return 0

    def _drained(self, now: float) -> bool:
        """Whether nothing is due anywhere: every queue was looked at after the last of them had become idle.

        What a handler sends to another queue comes with its end, which may be later than that queue's last look.
        """
        taken = sum(worker.taken for worker in self.workers)
        if not all(worker.idle for worker in self.workers):
            return False
        if taken != self._taken:
            self._taken, self._idle_since = taken, now
            for worker in self.workers:
                worker.wake()
        return all(worker.looked > self._idle_since for worker in self.workers)

    def _tick(self) -> None:
        now = time.monotonic()
        self._cut_stuck()
        for worker in self.workers:
            worker.executor.time_out(now)
            if late := overdue(worker, now):
                worker.put_off(late)
            if worker.executor.finished:
                # Too few results to wake the loop, while every thread is busy with something long.
                worker.wake()
        if now - self._reported >= 5.0:
            self._reported = now
            self._report(self.healthy)

    def _stop(self, code: int) -> int:
        for worker in self.workers:
            worker.stop()
        # The first signal during a stop of our own is a first one: what runs may finish.
        asked = max(self.signals.count, 1)
        if not self._settled(self._grace, asked):
            for worker in self.workers:
                worker.abandon(_RELEASED_DELAY)
            hurried = self.signals.count > asked
            self._settled(1.0 if hurried else 3.0, self.signals.count)
            code = 128 + (self.signals.number or signal.SIGINT) if hurried else (code or GRACE_EXCEEDED)
        if code == RECYCLED and self.signals.count:
            code = 0  # whoever asked for an end meanwhile must not get a new start
        self.keeper.stop()
        for part in self._side.values():
            part.stop()
        for thread in self._threads:
            thread.join(1.0)
        for worker in self.workers:
            worker.executor.close()
        return CRASHED if self._dead else code

    def _settled(self, seconds: float, asked: int) -> bool:
        """Wait until the loops have settled all they hold; False after `seconds` or at another signal."""
        end = time.monotonic() + seconds
        while any(loop.is_alive() for loop in self._loops):
            if time.monotonic() > end or self.signals.count > asked:
                return False
            self._tick()
            for loop in self._loops:
                loop.join(0.05)
        return True
