"""Keeps what is held: a thread of its own extends leases, so a handler that blocks its thread loses nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from queue_worker import events
from queue_worker.broker import extend
from queue_worker.config import QueueOptions
from queue_worker.errors import CallRefused, TransportError, TransportUnavailable
from queue_worker.executor import Executor, Run
from queue_worker.sqlstates import UNDEFINED_TABLE
from queue_worker.transport import Transport

_TICK = 0.5
_HEARTBEAT_SECONDS = 15.0


class Holder(Protocol):
    """A loop that holds leases: `held` by message id."""

    queue: str
    options: QueueOptions
    executor: Executor
    held: dict[int, Run]


class LeaseKeeper:
    """Extends the leases of all `workers` over one connection, and tells the database that this process lives.

    `heartbeat` returns the arguments of SQL `heartbeat`.
    """

    def __init__(
        self,
        transport: Transport,
        workers: Sequence[Holder],
        heartbeat: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._transport = transport
        self._workers = workers
        self._heartbeat = heartbeat
        self._stop = threading.Event()
        self._beat_at = 0.0
        self.last_tick = time.monotonic()

    def run(self) -> None:
        """Work until `stop`; a database that is away is waited for."""
        while not self._stop.wait(_TICK):
            self.last_tick = time.monotonic()
            for worker in self._workers:
                self._guarded(self._extend, worker)
            self._guarded(self._beat)

    def stop(self) -> None:
        """End `run` at its next tick."""
        self._stop.set()

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
        try:
            lost = extend(self._transport, worker.queue, [receipt for _, receipt in due], lease)
        except CallRefused as error:
            if error.sqlstate == UNDEFINED_TABLE:
                return  # the loop degrades that queue alone
            raise
        for run, receipt in due:
            if receipt.msg_id not in lost:
                run.deadline = max(run.deadline, now + lease)
            elif worker.held.get(receipt.msg_id) is run:
                worker.executor.lose(run, receipt)

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._beat_at >= _HEARTBEAT_SECONDS:
            self._beat_at = now
            self._transport.call("queue_worker.heartbeat", self._heartbeat())


def overdue(worker: Holder, now: float) -> list[Run]:
    """Return what has waited for a thread for half a lease: another process may start it sooner."""
    limit = worker.options.lease_seconds / 2
    return [
        run
        for run in list(worker.held.values())
        if not run.started and run.outcome is None and now - run.claimed > limit
    ]
