"""Handlers with `isolation="process"`: each slot is a thread with a child process, which a time limit or cancel kills.

A child is a fresh interpreter (the start method that multiprocessing calls spawn), so that no lock or connection of the
worker is in it. It serves many messages, one at a time, and ends with its thread.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from queue_worker import events, tracing
from queue_worker.child_protocol import Failure, Setup, Task
from queue_worker.errors import ChildDied, LeaseLost
from queue_worker.message import ACK, Ack, Outcome, Release
from queue_worker.processor import Job
from queue_worker.run import Run
from queue_worker.threads import ThreadExecutor

# The search path comes first: the package may have been found where a fresh interpreter would not look.
_BOOT = (
    "import sys; from multiprocessing.connection import Connection; c = Connection(int(sys.argv[1])); "
    "sys.path[:] = c.recv(); from queue_worker.handler_process import main; main(c)"
)
_START_SECONDS = 60.0
_RELEASED_SECONDS = 5.0
_END_SECONDS = 2.0
"""How long a process that closed its end may take to end by itself."""


class Child:
    """One child process and the socket to it; `run` and `close` are for the thread that made it."""

    def __init__(self, setup: Setup) -> None:
        """Start the process; raises ChildDied when it cannot be made ready."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(theirs.fileno()), setup.queue],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # A group of its own: Ctrl+C at the terminal is for the worker, and a kill takes all that it started.
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())
        self._lock = threading.Lock()
        self._current: Run | None = None
        self._dead = self._killed = False
        try:
            self._connection.send(sys.path)
            self._connection.send(setup)
            if not self._connection.poll(_START_SECONDS) or self._connection.recv() != ("ready",):
                raise EOFError
        except (EOFError, OSError):
            raise self._died() from None

    @property
    def alive(self) -> bool:
        """Whether it can take another run; for the time between two runs, when nothing may come from it."""
        return not (self._dead or self._killed or self._connection.poll())

    def run(self, run: Run, job: Job[Any], timeout: float) -> Any:
        """Let the child run `job` and return the result's JSON text.

        Raises `Raised` with what the handler raised, ChildDied, or LeaseLost for a run that was told to stop before.
        """
        with self._lock:
            # What stops it comes either before this line, and is seen here, or finds a process to kill.
            if run.lost or run.outcome is not None:
                raise LeaseLost(f"message {job.msg_id} of queue {job.queue!r} is not this run's any more")
            self._current = run
        try:
            self._connection.send(("run", Task(run.message, job.max_attempts, timeout)))
            while True:
                kind, *values = self._connection.recv()
                if kind == "done":
                    return values[0]
                if kind == "failed":
                    raise Raised(values[0])
                self._serve(job, kind, values)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise self._died() from None
        finally:
            with self._lock:
                self._current = None

    def _serve(self, job: Job[Any], kind: str, values: list[Any]) -> None:
        match kind, values:
            case "progress", [reported]:
                job.reported = reported
            case "note", [fields]:
                job.annotate(**fields)
            case "settled", []:
                job.mark_settled()
            case "ask", [name, argument]:
                self._connection.send(("answer", _answer(job, name, argument)))

    def kill(self, run: Run) -> None:
        """Kill the process, from any thread, if it is still at `run`; `run()` then raises ChildDied."""
        with self._lock:
            if self._current is run:
                self._killed = True
                self._kill()

    def _kill(self) -> None:
        # Not waited for yet, so the number still belongs to it.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _died(self) -> ChildDied:
        """Wait for the end of a process that answers no more, and say how it ended."""
        self._dead = True
        self._connection.close()
        code = self._ended()
        if code >= 0:
            return ChildDied(f"the handler's process exited with code {code}")
        hint = "; the kernel does this when memory runs out" if code == -signal.SIGKILL else ""
        return ChildDied(f"the handler's process was killed by {_name(-code)}{hint}")

    def _ended(self) -> int:
        """Wait a moment for its own end, kill what is left of its group, and return its exit code."""
        end = time.monotonic() + _END_SECONDS
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        # WNOWAIT leaves its number in place, so that the kill below cannot hit a stranger.
        with suppress(ChildProcessError):
            while time.monotonic() < end and os.waitid(os.P_PID, self._process.pid, how) is None:
                threading.Event().wait(0.005)
        with self._lock:
            self._kill()
            return self._process.wait()

    def close(self) -> None:
        """End the process; it is idle."""
        if not self._dead:
            self._died()


def _name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"


def _answer(job: Job[Any], name: str, argument: Any) -> Any:
    """Return what a child asks for, about the run of `job`."""
    if name == "extend":
        job.extra_seconds += argument
    elif name == "transaction":
        job.in_transaction = argument
    return job.cancelled if name == "cancelled" else None


class Raised(Exception):
    """The handler raised; carries what crossed over."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.name)
        self.failure = failure


class ProcessExecutor(ThreadExecutor):
    """A pool of threads, each of which lets its own child process run the handler."""

    stop_seconds = 5.0

    def __init__(self, *arguments: Any, setup: Setup, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._setup = setup
        self._children: dict[int, Child] = {}

    def stop_handler(self, slot: int, run: Run) -> None:
        """See `Executor.stop_handler`: kills the child."""
        child = self._children.get(slot)
        if child is not None:
            child.kill(run)

    def _work(self) -> None:
        try:
            super()._work()
        finally:
            child = self._children.pop(threading.get_ident(), None)
            if child is not None:
                child.close()

    def _begin(self, run: Run, thread: int, now: float) -> bool:
        if self._expired(run, now):
            return False
        child = self._children.get(thread)
        if child is None or not child.alive:
            if child is not None:
                child.close()
            try:
                self._children[thread] = Child(self._setup)
            except (ChildDied, OSError) as error:
                self._children.pop(thread, None)
                events.emit("child.failed", queue=self.processor.queue, error=str(error))
                self.finish(run, Release(_RELEASED_SECONDS))
                return False
        # The time limit is the handler's: the start of its process is not counted.
        return super()._begin(run, thread, time.monotonic())

    def _run(self, run: Run) -> Outcome:
        message = run.message
        if events.wanted("message.started"):
            events.emit("message.started", queue=message.queue, msg_id=message.receipt.msg_id, attempt=message.attempt)
        try:
            job = self._new_job(run, None)
            with tracing.handling([message]):
                text = self._children[threading.get_ident()].run(run, job, self.policy.timeout_for(message))
            return self._done_as(run, text)
        except Raised as raised:
            failure = raised.failure
            if (
                failure.release is not None
                and failure.release.pause is None
                and not (run.lost or (run.job is not None and run.job.settled))
            ):
                return failure.release
            return self._failed(run, failure.exception())
        except BaseException as error:
            return self._failed(run, error)

    def _done_as(self, run: Run, text: str | None) -> Outcome:
        if run.lost or text is None:
            return self._done(run, None)
        if run.job is not None and run.job.settled:
            run.settled = True
            self._keep(run, lambda: text)
            return ACK
        return Ack(text)
