"""Fires schedules: computes their times from the database's clock, and has SQL send what is due.

Every worker process may run one. SQL `fire` lets one of them fire each time: it locks the schedule, compares what the
caller computed from, and writes the unique (schedule, time) row, the message and the next time in one transaction.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from queue_worker import events
from queue_worker.errors import CallRefused, TransportUnavailable
from queue_worker.pauses import Backoff
from queue_worker.schedule_definition import Schedule
from queue_worker.schedule_times import Rule, latest, rule_of
from queue_worker.transport import Transport

REFRESH_SECONDS = 30.0
"""Longest wait between two looks at the schedules, where there are some."""

IDLE_SECONDS = 60.0
"""Wait between two looks where there are none."""

SKIP_AFTER = timedelta(minutes=2)
"""With misfire `skip`, a time that is later than this is not made up for. More than the longest wait above."""

_BUSY_SECONDS = 0.5
_SHORTEST_SECONDS = 0.005
_KEPT_SECONDS = 5.0
"""A connection is kept over waits shorter than this."""

_MOVED = ("sent", "repeated", "moved")


class Scheduler:
    """The thread that fires schedules; `schedules` are those of the app, written to the database first."""

    queue = "schedules changed"
    """What a NOTIFY about schedules says; no queue can be called so. See `listening.Sleeper`."""

    def __init__(self, transport: Transport, schedules: Iterable[Schedule] = ()) -> None:
        self._transport = transport
        self._unwritten = list(schedules)
        self._write_again = 0.0
        self._ending = threading.Event()
        self._wake = threading.Event()

    def run(self) -> None:
        """Work until `stop`."""
        backoff = Backoff(cap=5.0)
        while not self._ending.is_set():
            self._wake.clear()
            try:
                pause = self.step()
                backoff.reset()
            except TransportUnavailable:
                # The loops report the outage.
                pause = backoff.next()
            except CallRefused as error:
                events.emit("schedule.error", error=str(error))
                pause = REFRESH_SECONDS
            if pause >= _KEPT_SECONDS:
                self._transport.close()
            self._wake.wait(pause)
        self._transport.close()

    def stop(self) -> None:
        """End `run` after the call under way."""
        self._ending.set()
        self._wake.set()

    def wake(self) -> None:
        """Look at the schedules now: one was edited."""
        self._wake.set()

    def listen(self, listening: bool) -> None:
        """See `listening.Sleeper`; polling suffices."""

    def step(self) -> float:
        """Fire all that is due; returns the seconds until the next look.

        Raises TransportUnavailable or CallRefused.
        """
        self._write()
        while not self._ending.is_set():
            *due, clock = self._call("due_schedules", {})
            if not due:
                return self._pause(clock["wait_seconds"])
            done = [self._serve(row) for row in due]
            if not any(done):
                return _BUSY_SECONDS
        return 0.0

    def _pause(self, wait: float | None) -> float:
        longest = IDLE_SECONDS if wait is None and not self._unwritten else REFRESH_SECONDS
        return min(longest, max(_SHORTEST_SECONDS, longest if wait is None else wait))

    def _write(self) -> None:
        """Write the app's schedules that are not in the database yet."""
        if not self._unwritten or time.monotonic() < self._write_again:
            return
        self._write_again = time.monotonic() + REFRESH_SECONDS
        left = []
        for one in self._unwritten:
            try:
                self._call("schedule", one.arguments())
            except CallRefused as error:
                events.emit("schedule.error", schedule=one.name, queue=one.queue, error=str(error))
                left.append(one)
        self._unwritten = left

    def _serve(self, row: dict[str, Any]) -> bool:
        """Move one schedule on; returns whether anything was done, by us or by somebody else."""
        try:
            steps = plan(row)
        except Exception as error:  # a bug in the calculation of one schedule must not end them all
            text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            return self._fail(row, text)
        seen = row["next_fire_at"]
        for at, following in steps:
            outcome = self._fire(row, seen, at, following)
            if outcome not in _MOVED:
                return outcome not in ("locked", "early")
            seen = following
        return True

    def _fire(self, row: dict[str, Any], seen: datetime | None, at: datetime | None, following: datetime) -> str:
        params = {
            "name": row["name"],
            "version": row["version"],
            "seen_at": seen,
            "fire_at": at,
            "next_at": following,
        }
        try:
            [answer] = self._call("fire", params)
        except CallRefused as error:
            # Such as a statement that was cancelled: the other schedules go on, this one is tried again.
            events.emit("schedule.error", schedule=row["name"], error=str(error))
            return "locked"
        where = {"schedule": row["name"], "queue": answer["queue"]}
        if answer["outcome"] == "sent" and at is not None:
            events.emit("schedule.fired", **where, msg_id=answer["msg_id"], scheduled_for=at.isoformat())
        elif answer["outcome"] == "error":
            events.emit("schedule.error", **where, error=answer["detail"])
        return str(answer["outcome"])

    def _fail(self, row: dict[str, Any], error: str) -> bool:
        events.emit("schedule.error", schedule=row["name"], error=error)
        [answer] = self._call("fail_schedule", {"name": row["name"], "version": row["version"], "error": error})
        return bool(answer["fail_schedule"])

    def _call(self, function: str, params: dict[str, Any]) -> list[dict[str, Any]]:
        return self._transport.call(f"queue_worker.{function}", params).dicts()


def plan(row: dict[str, Any]) -> list[tuple[datetime | None, datetime]]:
    """Return the steps that bring a schedule up to now: a time to fire (None: none), and the next one after it.

    `row` is one of SQL `due_schedules`; its `now` is the only clock. Raises ValueError for a bad cron text or zone.
    """
    rule: Rule = rule_of(row["cron"], row["timezone"], row["from_at"])
    first: datetime | None = row["next_fire_at"]
    now: datetime = row["now"]
    following = rule.after(row["from_at"] if first is None else now)
    if following is None:
        raise ValueError(f"{row['cron']!r} has no time left")
    if first is None:
        return [(None, following)]
    limit = row["misfire_limit"] if row["misfire"] == "all" else 1
    # The stored time is a promise, also where a newer time zone database would not make it again.
    due = [first, *latest(rule, first, now, limit)][-limit:]
    if row["misfire"] == "skip" and now - due[-1] > SKIP_AFTER:
        return [(None, following)]
    return list(zip(due, [*due[1:], following], strict=True))
