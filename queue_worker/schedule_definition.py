"""Schedules that an app declares in its code; checked when they are declared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel

from queue_worker.config import check_queue_name
from queue_worker.errors import ConfigError

F = TypeVar("F")

MISFIRES = ("skip", "once", "all")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,99}\Z")


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule, with the fields of SQL `queue_worker.schedule`."""

    name: str
    queue: str
    cron: str
    payload: Mapping[str, Any] = field(default_factory=dict)
    timezone: str = "UTC"
    misfire: str = "once"
    misfire_limit: int = 100
    options: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of SQL `queue_worker.schedule`."""
        return {
            "name": self.name,
            "queue": self.queue,
            "cron": self.cron,
            "payload": dict(self.payload),
            "timezone": self.timezone,
            "misfire": self.misfire,
            "misfire_limit": self.misfire_limit,
            "options": dict(self.options),
        }


def check(schedule: Schedule) -> Schedule:
    """Return `schedule` if it can be right; raises ValueError with one line that names the field."""
    from queue_worker.schedule_times import rule_of

    if not _NAME.match(schedule.name):
        raise ValueError(
            f"schedule name {schedule.name!r:.60}: use 1 to 100 of A-Z, a-z, 0-9, _, ., : and -,"
            " starting with a letter, a digit or _"
        )
    if schedule.misfire not in MISFIRES:
        raise ValueError(f"misfire {schedule.misfire!r:.60} is not one of {', '.join(MISFIRES)}")
    if not 1 <= schedule.misfire_limit <= 1000:
        raise ValueError(f"misfire_limit {schedule.misfire_limit} is not 1 to 1000")
    rule_of(schedule.cron, schedule.timezone, datetime.now(UTC))
    return schedule


def interval_text(every: float | timedelta | str) -> str:
    """Return an interval as a schedule's text: `every 90s` of seconds or a timedelta, `every 10 minutes` of a text."""
    if isinstance(every, str):
        return every if every.lower().lstrip("@").startswith("every") else f"every {every}"
    seconds = every.total_seconds() if isinstance(every, timedelta) else every
    if seconds != int(seconds):
        raise ValueError(f"every {seconds} seconds: use whole seconds")
    return f"every {int(seconds)}s"


class Scheduling:
    """The part of an app that declares schedules."""

    def __init__(self) -> None:
        self.schedules: dict[str, Schedule] = {}

    def schedule(
        self,
        cron: str | None = None,
        *,
        queue: str,
        payload: Mapping[str, Any] | BaseModel | None = None,
        name: str | None = None,
        every: float | timedelta | str | None = None,
        timezone: str = "UTC",
        misfire: str = "once",
        misfire_limit: int = 100,
        **options: Any,
    ) -> Callable[[F], F]:
        """Send `payload` to `queue` by a cron line, or `every` so many seconds (or timedelta, or '10 minutes').

        Workers write it to the database when they start; `name` (default: the queue) identifies it there. `options` are
        those of SQL `queue_worker.send`. Returns a decorator that changes nothing, so that it may stand above the
        processor. Raises ConfigError for what cannot be right, and for a second schedule of one name.
        """
        name = queue if name is None else name
        check_queue_name(queue)
        if (cron is None) == (every is None):
            raise ConfigError(f"schedule {name!r}: give a cron line or every=, one of the two")
        if name in self.schedules:
            raise ConfigError(f"two schedules are called {name!r}; give each its own name=")
        body = payload.model_dump(mode="json") if isinstance(payload, BaseModel) else dict(payload or {})
        try:
            json.dumps([body, options], allow_nan=False)
            text = interval_text(every) if every is not None else str(cron)
            made = Schedule(name, queue, text, body, timezone, misfire, misfire_limit, options)
            self.schedules[name] = check(made)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"schedule {name!r}: {error}") from None
        return lambda decorated: decorated
