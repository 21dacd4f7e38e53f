"""Keeps what is held: a thread of its own extends leases, so a handler that blocks its thread loses nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from queue_worker import events
from queue_worker.broker import extend, lost
from queue_worker.config import QueueOptions
from queue_worker.errors import CallRefused, TransportError, TransportUnavailable
from queue_worker.executor import Executor
from queue_worker.message import Receipt
from queue_worker.progress import ProgressReports
from queue_worker.run import Run
from queue_worker.sqlstates import UNDEFINED_TABLE
from queue_worker.timings import Timings
from queue_worker.transport import Transport

_TICK = 0.5
_HEARTBEAT_SECONDS = 15.0
_LOOK_SECONDS = 1.0


class Holder(Protocol):
    """A loop that holds leases: `held` by message id. `listening`: NOTIFY reaches this process."""

    queue: str
    listening: bool
    options: QueueOptions
    executor: Executor
    held: dict[int, Run]


class LeaseKeeper:
    """Extends the leases of all `workers` over one connection, and tells the database that this process lives.

    It also notices messages that were cancelled while they run, and writes their progress. `heartbeat` returns the
    arguments of SQL `heartbeat`; `timings` are told with it. `hears_cancels`: `look` is called for them while a worker
    listens.
    """

    def __init__(
        self,
        transport: Transport,
        workers: Sequence[Holder],
        heartbeat: Callable[[], Mapping[str, Any]],
        *,
        hears_cancels: bool = True,
        timings: Timings | None = None,
    ) -> None:
        self._transport = transport
        self._workers = workers
        self._heartbeat = heartbeat
        self._hears_cancels = hears_cancels
        self._wake = threading.Event()
        self._stopping = False
        self._asked: set[str] = set()
        self._hearing: set[str] = set()
        self._progress = ProgressReports()
        self._timings = timings
        self._looked_at = 0.0
        self._beat_at = 0.0
        self.last_tick = time.monotonic()

    def run(self) -> None:
        """Work until `stop`; a database that is away is waited for."""
        while True:
            self._wake.wait(_TICK)
            self._wake.clear()
            if self._stopping:
                return
            now = self.last_tick = time.monotonic()
            for worker in self._workers:
                self._guarded(self._extend, worker)
            self._guarded(self._look, now)
            self._guarded(self._progress.write, self._transport, [one.executor for one in self._workers], now)
            self._guarded(self._beat)

    def stop(self) -> None:
        """End `run` at its next tick."""
        self._stopping = True
        self._wake.set()

    def look(self, queue: str, msg_id: int) -> None:
        """Somebody says that a message was cancelled: look at once whether what runs of `queue` is still held."""
        # Only a hint, because everybody may NOTIFY: the queue itself is asked.
        if any(worker.queue == queue and msg_id in worker.held for worker in self._workers):
            self._asked.add(queue)
            self._wake.set()

    def _guarded(self, step: Callable[..., None], *arguments: Any) -> None:
        try:
            step(*arguments)
        except TransportUnavailable:
            # The loops report the outage; a lease that ends meanwhile is refused at its settle.
            pass
        except TransportError as error:
            events.emit("keeper.error", error=str(error))

    def _extend(self, worker: Holder) -> None:
        now = time.monotonic()
        lease, heartbeat = worker.options.lease_seconds, worker.options.heartbeat_seconds
        due = [
            (run, run.message.receipt)
            for run in list(worker.held.values())
            if not run.lost and run.deadline - now <= lease - heartbeat
        ]
        if not due:
            return
        with _table_may_be_missing():
            missed = extend(self._transport, worker.queue, [receipt for _, receipt in due], lease)
            for run, receipt in due:
                if receipt.msg_id not in missed:
                    run.deadline = max(run.deadline, now + lease)
            if missed:
                self._tell(worker, [(run, receipt) for run, receipt in due if receipt.msg_id in missed])

    def _look(self, now: float) -> None:
        """Ask for what was cancelled, where NOTIFY said so or cannot say so; an idle worker asks nothing."""
        polling = now - self._looked_at >= _LOOK_SECONDS
        if polling:
            self._looked_at = now
        # Those that heard at the last look: what was cancelled before a worker began to hear was said to nobody.
        heard = self._hearing
        if polling:
            self._hearing = {w.queue for w in self._workers if w.listening and self._hears_cancels}
        for worker in self._workers:
            if worker.queue in self._asked or (polling and worker.queue not in heard):
                live = [(run, run.message.receipt) for _, run in worker.executor.live()]
                runs = [(run, receipt) for run, receipt in live if not run.lost and run.outcome is None]
                if runs:
                    with _table_may_be_missing():
                        self._tell(worker, runs)
                self._asked.discard(worker.queue)

    def _tell(self, worker: Holder, runs: list[tuple[Run, Receipt]]) -> None:
        """Tell those of `runs` that are not held any more, and why."""
        gone = lost(self._transport, worker.queue, [receipt for _, receipt in runs])
        for run, receipt in runs:
            if receipt.msg_id in gone and worker.held.get(receipt.msg_id) is run:
                worker.executor.lose(run, receipt, cancelled=gone[receipt.msg_id])

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._beat_at >= _HEARTBEAT_SECONDS:
            self._beat_at = now
            self._transport.call("queue_worker.heartbeat", self._heartbeat())
            if self._timings is not None:
                self._timings.flush(self._transport)


@contextmanager
def _table_may_be_missing() -> Iterator[None]:
    try:
        yield
    except CallRefused as error:
        # A queue that was dropped: its loop degrades that queue alone.
        if error.sqlstate != UNDEFINED_TABLE:
            raise


def overdue(worker: Holder, now: float) -> list[Run]:
    """Return what has waited for a thread for half a lease: another process may start it sooner."""
    limit = worker.options.lease_seconds / 2
    return [
        run
        for run in list(worker.held.values())
        if not run.started and run.outcome is None and now - run.claimed > limit
    ]
