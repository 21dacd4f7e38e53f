"""The parent of `start --processes N`: starts the worker processes, starts them again, and stops them.

It is run as a script in place of the command that the user started, with the standard library only: it holds no
database connection and nothing of the app, so that it stays small and has nothing that could break.
"""

from __future__ import annotations

import json
import signal
import sys
import time
import types
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":
    # The package without its __init__, which imports the engine.
    _package = types.ModuleType("queue_worker")
    _package.__path__ = [str(Path(__file__).parent)]
    sys.modules["queue_worker"] = _package

from queue_worker.health import HealthFile
from queue_worker.manager import Manager
from queue_worker.plain_log import PlainLog
from queue_worker.worker_process import Child, Wishes

CRASHED, GRACE_EXCEEDED, RECYCLED, CONFIGURATION = 1, 70, 75, 78

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
_STEADY_SECONDS = 60.0
"""A process that lived this long has not failed at its start: the next delay is the first one again."""

_REPORT_SECONDS = 5.0
_HURRY_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. Times in seconds; `command` without the option that makes it a child."""

    command: list[str]
    count: int
    grace: float
    stop_timeout: float
    state_dir: str
    burst: bool
    log_json: bool
    log_level: int
    silent_seconds: float = 120.0
    """A process whose loops have not been well for this long is killed and started again."""

    def arguments(self) -> list[str]:
        """Return the command line of the parent for this plan."""
        return [sys.executable, "-I", __file__, json.dumps(asdict(self))]


class Slot:
    """The place of one of the processes, with the `child` that holds it now and when the next one starts."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.child: Child | None = None
        self.next_start: float | None = None
        self.failures = 0
        self.done = False
        self.rolling = False
        self.trouble = ""

    @property
    def ready(self) -> bool:
        """Whether its process runs, or has done all there is to do."""
        return self.done or (self.child is not None and self.child.ready)


class Parent:
    """Runs a plan; `run` returns the exit code."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._log = PlainLog(plan.log_json, plan.log_level)
        self._wishes = Wishes()
        self._manager = Manager()
        self._health = HealthFile(Path(plan.state_dir))
        self._slots = [Slot(number) for number in range(1, plan.count + 1)]
        self._to_roll: list[Slot] = []
        self._announced = False
        self._reported = 0.0

    def run(self) -> int:
        """Run until a signal, a configuration error, or (with --burst) until nothing is left to do."""
        with self._wishes.received():
            try:
                # Alone: what is wrong is said once, and missing migrations are applied once.
                self._slots[0].next_start = time.monotonic()
                return self._stop(self._watch())
            finally:
                self._health.remove()

    # ---------------------------------------------------------------------------------------------- while all is well

    def _watch(self) -> int:
        """Keep the processes running; returns the exit code that the reason to stop calls for."""
        while not self._wishes.count:
            now = time.monotonic()
            for slot in self._slots:
                if slot.next_start is not None and now >= slot.next_start:
                    self._start(slot)
            starts = [slot.next_start for slot in self._slots if slot.next_start is not None]
            self._wait(min([*starts, self._reported + _REPORT_SECONDS]))
            for slot, code in self._ended():
                if code == CONFIGURATION:
                    self._log.error("configuration error: stopping all", process=slot.number)
                    return CONFIGURATION
                self._judge(slot, code)
            if all(slot.done for slot in self._slots):
                return 0
            self._spread()
            self._roll()
            self._report()
        return 0

    def _start(self, slot: Slot) -> None:
        slot.next_start, slot.rolling = None, False
        try:
            slot.child = Child(self._plan.command, slot.number)
        except OSError as error:  # no memory, or too many processes
            self._retry(slot, f"cannot be started: {error.strerror}")
            return
        self._log.debug("started", process=slot.number, pid=slot.child.pid)

    def _retry(self, slot: Slot, how: str) -> None:
        slot.failures += 1
        delay = min(_FIRST_DELAY * 2.0 ** (slot.failures - 1), _LONGEST_DELAY)
        slot.next_start = time.monotonic() + delay
        slot.trouble = f"process {slot.number} {how}"
        self._log.error("a process has failed, starting it again", process=slot.number, how=how, delay=delay)

    def _wait(self, until: float) -> None:
        """Wait until a signal, a word or the end of a child, or the time `until`."""
        channels = [slot.child.channel for slot in self._slots if slot.child is not None and slot.child.listening]
        self._wishes.wait(until - time.monotonic(), *channels)
        for slot in self._slots:
            if slot.child is not None:
                slot.child.listen()

    def _ended(self) -> list[tuple[Slot, int]]:
        """Return the slots of the children that have ended, and their exit codes."""
        found = []
        for slot in self._slots:
            code = slot.child.ended() if slot.child is not None else None
            if code is not None:
                found.append((slot, code))
        return found

    def _judge(self, slot: Slot, code: int) -> None:
        """Decide when the process that ended is started again."""
        child, slot.child = slot.child, None
        assert child is not None  # noqa: S101
        if code == 0 and self._plan.burst:
            slot.done = True
        elif code in (0, RECYCLED) and (child.ready or slot.rolling):
            slot.failures, slot.next_start = 0, time.monotonic()
            self._log.info("starting a process again", process=slot.number, code=code)
        else:
            if time.monotonic() - child.started >= _STEADY_SECONDS:
                slot.failures = 0
            self._retry(slot, _how(code))

    def _spread(self) -> None:
        """Start the others once the first one runs, and tell the process manager when all do."""
        first, *others = self._slots
        if first.ready:
            for slot in others:
                if slot.child is None and slot.next_start is None and not slot.done:
                    slot.next_start = time.monotonic()
        for slot in self._slots:
            if slot.ready:
                slot.trouble = ""
        if not self._announced and all(slot.ready for slot in self._slots):
            self._announced = True
            self._log.info("all processes are ready", processes=self._plan.count)
            self._manager.ready()

    def _roll(self) -> None:
        """On SIGUSR1 start every process anew, the next one when the one before is ready."""
        if self._wishes.roll:
            self._wishes.roll = False
            self._to_roll = list(self._slots)
        if self._to_roll and all(slot.ready for slot in self._slots):
            slot = self._to_roll.pop(0)
            if slot.child is not None:
                # Until its successor is ready, the next one waits.
                slot.rolling, slot.child.ready = True, False
                slot.child.stop()

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._reported < _REPORT_SECONDS:
            return
        self._reported = now
        for slot in self._slots:
            if slot.ready and slot.child is not None and now - slot.child.heard > self._plan.silent_seconds:
                self._log.error("has not been well for too long: killed", process=slot.number)
                slot.child.kill()
        trouble = next((slot.trouble for slot in self._slots if slot.trouble), "")
        self._health.report(not trouble, parent_of=self._plan.count, trouble=trouble)
        if self._announced:
            self._manager.alive()
        else:
            self._manager.waiting("waiting until all processes are ready")

    # ---------------------------------------------------------------------------------------------- the stop

    def _stop(self, code: int) -> int:
        """Stop all processes; returns the exit code of the whole, the worst that says something."""
        self._manager.stopping()
        self._log.info("stopping", signal=self._wishes.number, code=code)
        for slot in self._slots:
            if slot.child is not None:
                slot.child.stop(self._wishes.number or signal.SIGTERM)
        plan = self._plan
        patience = min(plan.grace + 5.0, max(plan.grace + 1.0, plan.stop_timeout - 1.0))
        deadline = time.monotonic() + patience
        asked, hurried, codes = max(self._wishes.count, 1), False, [code]
        while any(slot.child is not None for slot in self._slots):
            self._wait(min(deadline, time.monotonic() + 1.0))
            for slot, ended in self._ended():
                slot.child = None
                codes.append(ended)
            if self._wishes.count > asked and not hurried:
                hurried, deadline = True, time.monotonic() + _HURRY_SECONDS
                for slot in self._slots:
                    if slot.child is not None:
                        slot.child.hurry()
            if time.monotonic() >= deadline or self._wishes.count > asked + 1:
                codes.append(GRACE_EXCEEDED)
                for slot in self._slots:
                    if slot.child is not None:
                        slot.child.kill()
                deadline = time.monotonic() + 1.0
        code = 128 + (self._wishes.number or signal.SIGTERM) if hurried else worst(codes)
        self._log.info("stopped", code=code)
        return code


def worst(codes: list[int]) -> int:
    """Return the exit code that says most about a stop in which the processes ended with `codes`."""
    if CONFIGURATION in codes:
        return CONFIGURATION
    # A process that we killed for its grace ends by a signal; that is no crash.
    if GRACE_EXCEEDED in codes:
        return GRACE_EXCEEDED
    return CRASHED if any(code not in (0, RECYCLED) for code in codes) else 0


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}"


def main() -> int:
    """Run the plan in the first argument."""
    return Parent(Plan(**json.loads(sys.argv[1]))).run()


if __name__ == "__main__":
    sys.exit(main())
