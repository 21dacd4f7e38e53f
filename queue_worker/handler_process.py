"""The child process of a handler with `isolation="process"`: runs one message after another, and dies with its parent.

It is started by `isolation.Child`, with the socket to its parent already open.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from queue_worker import log
from queue_worker.broker import DatabaseContext
from queue_worker.child_protocol import Failure, Setup, Task, load_handler
from queue_worker.config_options import resolve
from queue_worker.errors import (
    CallRefused,
    InvalidPayload,
    LeaseLost,
    Reject,
    Retry,
    TransportUnavailable,
    Unavailable,
    UnsupportedVersion,
)
from queue_worker.message import Message, Release
from queue_worker.processor import App, Job, Processor, Transaction
from queue_worker.results import result_text
from queue_worker.retry import RetryPolicy, error_text, kind_name
from queue_worker.transport import Database

_PR_SET_PDEATHSIG = 1
_OURS = (Retry, Reject, Unavailable, CallRefused, LeaseLost, UnsupportedVersion, InvalidPayload, TransportUnavailable)


def main(connection: Connection) -> None:
    """Serve the parent at the other end of `connection` until it goes away."""
    _die_with_parent()
    os.set_inheritable(connection.fileno(), False)
    # A process manager signals whole groups and trees; when a handler is to stop is the parent's business. Not SIG_IGN,
    # which programs that the handler starts would inherit.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    setup: Setup = connection.recv()
    log.configure(setup.log_level, setup.log_format)
    parent = Parent(connection)
    runner = Runner(setup, parent)
    parent.tell("ready")
    while True:
        runner.run(parent.tasks.get())


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Parent:
    """The worker that started this process; threads of the handler may all speak to it."""

    def __init__(self, connection: Connection) -> None:
        self.tasks: SimpleQueue[Task] = SimpleQueue()
        self._connection = connection
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._speaking = threading.Lock()
        self._asking = threading.Lock()
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def tell(self, *words: Any) -> None:
        """Send one message."""
        with self._speaking:
            self._connection.send(words)

    def ask(self, name: str, argument: Any = None) -> Any:
        """Ask for something and return the answer."""
        with self._asking:
            self.tell("ask", name, argument)
            return self._answers.get()

    def _listen(self) -> None:
        try:
            while True:
                kind, value = self._connection.recv()
                (self.tasks if kind == "run" else self._answers).put(value)
        except (EOFError, OSError):
            # The parent has closed its end, or is dead: whatever runs here has no owner any more.
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(0)


class Runner:
    """Runs tasks; has a database of its own, which is connected to on first use."""

    def __init__(self, setup: Setup, parent: Parent) -> None:
        self._parent = parent
        self._kept = setup.kept
        # Through the decorator, so that the payload is read here as it would be in the worker.
        app = App(builtins=False)
        app.processor(setup.queue, **setup.options)(load_handler(*setup.handler))
        self._processor: Processor = app.processors[setup.queue]
        self._policy = RetryPolicy.from_options(resolve(setup.queue, (), setup.options))
        self._database = setup.address.open()
        self._timeout = 0.0
        self._context = _Context(self._database, setup.on_success, self._timeout_for, parent)

    def _timeout_for(self, _message: Message) -> float:
        return self._timeout

    def run(self, task: Task) -> None:
        """Run one task and tell how it ended."""
        self._timeout = task.timeout
        try:
            payload = self._processor.parse(task.message.body)
            job = _ChildJob(task.message, payload, task.max_attempts, self._context)
            job.parent = self._parent
            value = self._processor.handler(job)
            if self._processor.is_async:
                value = asyncio.run(value)
            end: tuple[Any, ...] = ("done", result_text(value) if self._kept else None)
        # BaseException: sys.exit() in a handler is a failure of it, as it is in a thread.
        except BaseException as error:
            end = ("failed", failure_of(error, self._policy, task.message))
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        self._parent.tell(*end)


def failure_of(error: BaseException, policy: RetryPolicy, message: Message) -> Failure:
    """Return what is told of `error`, which the handler of `message` raised."""
    name = type(error).__name__
    try:
        kinds = tuple(map(kind_name, type(error).__mro__))
        outcome = policy.outcome_for(message, error)
        release = outcome if isinstance(outcome, Release) else None
        ours = next((kind for kind in _OURS if isinstance(error, kind)), None)
        if ours is not None:
            fields = {key: getattr(error, key) for key in ("reason", "delay", "sqlstate") if hasattr(error, key)}
            failure = Failure(ours.__name__, str(error), fields, release)
        else:
            failure = Failure(name, error_text(error).removeprefix(name).removeprefix(": "), None, release, kinds)
        pickle.dumps(failure)
        return failure
    except Exception as broken:
        # An exception class of the user that cannot even be looked at.
        return Failure(name, error_text(broken))


class _ChildJob(Job[Any]):
    """A job whose run the parent keeps."""

    __slots__ = ("parent",)
    parent: Parent

    def annotate(self, **fields: Any) -> None:
        super().annotate(**fields)
        self.parent.tell("note", {name: _portable(value) for name, value in fields.items()})

    def extend(self, seconds: float) -> None:
        super().extend(seconds)
        self.parent.ask("extend", seconds)

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        super().progress(done, total, note)
        self.parent.tell("progress", self.reported)


def _portable(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


class _Context(DatabaseContext):
    """What a job can do to the database from here; the parent knows of every transaction before it begins."""

    def __init__(self, database: Database, on_success: str, timeout_for: Any, parent: Parent) -> None:
        super().__init__(database.pool, on_success, timeout_for, lambda job: bool(parent.ask("cancelled")))
        self._parent = parent

    def finish(self, job: Job[Any], calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[dict[str, Any]]]:
        self._parent.ask("transaction", True)
        try:
            return super().finish(job, calls)
        finally:
            if job.settled:
                self._parent.tell("settled")
            self._parent.ask("transaction", False)

    @contextmanager
    def transaction(self, job: Job[Any]) -> Iterator[Transaction]:
        self._parent.ask("transaction", True)
        try:
            with super().transaction(job) as transaction:
                yield transaction
        finally:
            if job.settled:
                self._parent.tell("settled")
            self._parent.ask("transaction", False)
