"""When a schedule fires: pure calculation, from moments of the database's clock to moments in UTC.

APScheduler's triggers find the matching wall-clock times, in a calendar where the clock is never changed; its own
handling of such changes is not used (tests/unit/test_cron.py shows where it differs). A time that the clock skips
fires at the first moment that exists, together with what fires then anyway; one that comes twice fires the first time
only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from queue_worker.schedule_cron import Cron, Interval, parse

_SECOND = timedelta(seconds=1)
_WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]


class Rule(Protocol):
    """The times of a schedule."""

    def after(self, moment: datetime) -> datetime | None:
        """Return the first time after `moment`, in UTC; None where there is none any more."""


def rule_of(text: str, timezone: str, anchor: datetime) -> Rule:
    """Return the rule of a cron or interval text; raises ValueError with one line.

    `timezone` is an IANA name. Intervals are counted from `anchor`.
    """
    if isinstance(parsed := _parsed(text), Interval):
        _zone(timezone)
        return _IntervalRule(parsed.seconds, anchor.astimezone(UTC))
    return _CronRule(_triggers(parsed), _zone(timezone))


@lru_cache(maxsize=256)
def _parsed(text: str) -> Cron | Interval:
    return parse(text)


@lru_cache(maxsize=256)
def _triggers(cron: Cron) -> tuple[Any, ...]:
    """Return the triggers of which the earliest counts, for wall-clock times that pretend to be UTC."""
    month_days = {"day": _field([*cron.days, *(["last"] if cron.last_day else [])], 31)}
    weekdays = {"day_of_week": _field([_WEEKDAYS[number] for number in cron.weekdays], 7)}
    time = {
        "month": _field(cron.months, 12),
        "hour": _field(cron.hours, 24),
        "minute": _field(cron.minutes, 60),
        "second": _field(cron.seconds, 60),
    }
    alternatives = [month_days, weekdays] if cron.either_day else [{**month_days, **weekdays}]
    return tuple(CronTrigger(timezone=UTC, **time, **one) for one in alternatives)


def _field(values: Sequence[Any], all_of_them: int) -> str:
    return "*" if len(values) >= all_of_them else ",".join(map(str, values))


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"time zone {name!r} is not known; use a name such as Europe/Berlin or UTC") from None


@dataclass(frozen=True, slots=True)
class _IntervalRule:
    seconds: int
    anchor: datetime

    def after(self, moment: datetime) -> datetime | None:
        # Whole seconds: the trigger calculates with floats, in which a microsecond of a late year is lost.
        start = self.anchor.replace(microsecond=0)
        floor = moment.astimezone(UTC).replace(microsecond=0)
        trigger = IntervalTrigger(seconds=self.seconds, start_date=start, timezone=UTC)
        found: datetime | None = trigger.get_next_fire_time(None, max(floor, start) + _SECOND)
        return found


@dataclass(frozen=True, slots=True)
class _CronRule:
    triggers: tuple[Any, ...]
    zone: ZoneInfo

    def after(self, moment: datetime) -> datetime | None:
        # No wall-clock time before this one comes later than `moment`; of those that follow, some do not either, where
        # the clock was put back.
        wall = moment.astimezone(self.zone).replace(tzinfo=UTC, microsecond=0, fold=0)
        while True:
            found = [time for trigger in self.triggers if (time := trigger.get_next_fire_time(None, wall)) is not None]
            if not found:
                return None
            time = first_moment(min(found).replace(tzinfo=None), self.zone)
            if time > moment:
                return time
            wall = min(found) + _SECOND


def first_moment(wall: datetime, zone: ZoneInfo) -> datetime:
    """Return in UTC when a clock on the wall of `zone` first shows the naive time `wall`, or skips it."""
    found = wall.replace(tzinfo=zone).astimezone(UTC)
    if found.astimezone(zone).replace(tzinfo=None) == wall:
        return found
    # The clock was put forward between these two; PEP 495: in a gap fold=1 reads with the offset after it.
    early, late = wall.replace(tzinfo=zone, fold=1).astimezone(UTC), found
    while late - early > _SECOND:
        middle = early + timedelta(seconds=(late - early) // _SECOND // 2)
        if middle.astimezone(zone).replace(tzinfo=None) < wall:
            early = middle
        else:
            late = middle
    return late


def latest(rule: Rule, since: datetime, until: datetime, limit: int) -> list[datetime]:
    """Return the last `limit` times after `since` and up to `until`, in order."""
    window = timedelta(seconds=max(1, limit))
    # Looked for backwards in growing steps: a rule of every second, away for a year, has 31 million.
    while True:
        start = max(since, until - window)
        found: list[datetime] = []
        time = rule.after(start)
        while time is not None and time <= until:
            found.append(time)
            time = rule.after(time)
        if len(found) >= limit or start == since:
            return found[-limit:]
        window *= 2
