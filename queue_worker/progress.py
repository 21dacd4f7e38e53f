"""Carries what running handlers say about their progress to the database: one call for all, each job once a second."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from queue_worker.executor import Executor
from queue_worker.message import Receipt
from queue_worker.processor import Job, Progress
from queue_worker.transport import BigInts, Ints, Stamps, Transport

_EVERY_SECONDS = 1.0


class ProgressReports:
    """Remembers what was written; for one thread."""

    def __init__(self) -> None:
        self._written: dict[Job[Any], tuple[Progress, float]] = {}

    def write(self, transport: Transport, executors: Iterable[Executor], now: float) -> None:
        """Write what has changed since the last time; makes no call where nothing has."""
        live = [
            (run.job, run.message.receipt)
            for executor in executors
            for _, run in executor.live()
            if run.job is not None and run.job.reported is not None and not run.lost
        ]
        if not live:
            self._written.clear()
            return
        due = [
            (job, receipt, job.reported) for job, receipt in live if job.reported is not None and self._due(job, now)
        ]
        if due:
            transport.call("queue_worker.report_progress", _arguments(due))
        # Only once the call has succeeded: what could not be written is due at the next tick.
        ended = self._written.keys() - {job for job, _ in live}
        for job in ended:
            del self._written[job]
        self._written |= {job: (reported, now) for job, _, reported in due}

    def _due(self, job: Job[Any], now: float) -> bool:
        written = self._written.get(job)
        return written is None or (written[0] is not job.reported and now - written[1] >= _EVERY_SECONDS)


def _arguments(due: list[tuple[Job[Any], Receipt, Progress]]) -> dict[str, Any]:
    return {
        "queues": [job.queue for job, _, _ in due],
        "ids": BigInts(receipt.msg_id for _, receipt, _ in due),
        "read_cts": Ints(receipt.read_ct for _, receipt, _ in due),
        "enqueued_ats": Stamps(receipt.enqueued_at for _, receipt, _ in due),
        "dones": [reported.done for _, _, reported in due],
        "totals": [reported.total for _, _, reported in due],
        "notes": [reported.note for _, _, reported in due],
    }
