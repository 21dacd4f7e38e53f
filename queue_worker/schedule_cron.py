"""What a schedule's text says: a cron line, a macro, or an interval.

Numbers mean what they mean in crontab(5): weekdays are 0 to 7 with Sunday as both, and where day of month and day of
week are both restricted, either one suffices. APScheduler counts weekdays from Monday, demands both, and reads
`mon-fri/2` as `mon-fri` without a word; so each field becomes the plain list of its values here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_MONTHS = {
    "jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6, "jul": 7, "aug": 8, "sep": 9, "oct": 10, "nov": 11,
    "dec": 12,
}  # fmt: skip
_WEEKDAYS = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_UNIT = r"(?:seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d|weeks?|w)"
_INTERVAL = re.compile(rf"(?:@?every\s+)?((?:\d{{1,9}}\s*{_UNIT}\s*)+)\Z")
_EVERY = re.compile(r"@?every\b")
_PART = re.compile(r"(\*|\?|\d{1,4}|[a-z]{3})(?:-(\d{1,4}|[a-z]{3}))?(?:/(\d{1,4}))?\Z")
_MONTH_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_LONGEST_SECONDS = 366 * 86_400


@dataclass(frozen=True, slots=True)
class Cron:
    """The values of each field. `weekdays`: 0 is Sunday. `last_day`: the last day of the month counts as well.

    `either_day`: the day of month or the day of week has to fit, instead of both.
    """

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    last_day: bool
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    either_day: bool


@dataclass(frozen=True, slots=True)
class Interval:
    """Every so many seconds."""

    seconds: int


def parse(text: str) -> Cron | Interval:
    """Return what `text` says; raises ValueError with one line that names the field.

    Five fields are minute, hour, day of month, month and day of week; a sixth in front is the second. Also taken:
    `@hourly` and its like, and `every 10 minutes`, `every 1h30m`, `30s`.
    """
    plain = " ".join(text.lower().split())
    found = _INTERVAL.match(plain)
    if found:
        return _interval(text, found[1])
    fields = MACROS.get(plain, plain).split(" ")
    if _EVERY.match(plain):
        raise ValueError(f"{text!r}: write an interval such as every 30s, every 10 minutes or every 1h30m")
    if plain.startswith("@") and len(fields) == 1:
        raise ValueError(f"{text!r} is not known; use one of {', '.join(MACROS)}")
    if len(fields) not in (5, 6):
        raise ValueError(
            f"{text!r} has {len(fields)} fields; write minute, hour, day of month, month and day of week,"
            " such as 0 9 * * 1-5, or an interval such as every 10 minutes"
        )
    try:
        return _cron(fields if len(fields) == 6 else ["0", *fields])
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def _interval(text: str, lengths: str) -> Interval:
    parts = re.findall(r"(\d+)\s*([smhdw])", lengths)
    seconds = sum(int(number) * _UNITS[unit] for number, unit in parts)
    if not 1 <= seconds <= _LONGEST_SECONDS:
        raise ValueError(f"{text!r}: an interval is 1 second to 366 days")
    return Interval(seconds)


def _cron(fields: list[str]) -> Cron:
    second, minute, hour, day, month, weekday = fields
    months = _values(month, "month", 1, 12, _MONTHS)
    numbers = [part for part in day.split(",") if part not in ("l", "last")]
    last_day = len(numbers) < len(day.split(","))
    days = _values(",".join(numbers), "day of month", 1, 31, {}) if numbers else ()
    weekdays = _values(weekday, "day of week", 0, 7, _WEEKDAYS)
    # As crontab(5) has it: a field that begins with a star is not restricted.
    either_day = day[0] not in "*?" and weekday[0] not in "*?"
    if not either_day and not last_day and not any(one <= _MONTH_DAYS[number - 1] for one in days for number in months):
        raise ValueError("no month of these has such a day, so it would never fire")
    return Cron(
        _values(second, "second", 0, 59, {}),
        _values(minute, "minute", 0, 59, {}),
        _values(hour, "hour", 0, 23, {}),
        days,
        last_day,
        months,
        tuple(sorted({number % 7 for number in weekdays})),
        either_day,
    )


def _values(field: str, name: str, low: int, high: int, names: dict[str, int]) -> tuple[int, ...]:
    """Return the sorted values of one field."""
    found: set[int] = set()
    for part in field.split(","):
        matched = _PART.match(part)
        if matched is None or (matched[1] == "?" and not name.startswith("day")) or (matched[1] in "*?" and matched[2]):
            raise ValueError(f"{name} {part!r} is not understood; write *, 5, 1-5, */15 or 1,15")
        found.update(_part(matched, name, low, high, names))
    return tuple(sorted(found))


def _part(matched: re.Match[str], name: str, low: int, high: int, names: dict[str, int]) -> range | list[int]:
    first_text, last_text, step_text = matched.groups()
    first = low if first_text in "*?" else _number(first_text, names)
    if last_text:
        last = _number(last_text, names)
    elif first_text in "*?" or step_text:
        # Weekday 7 is Sunday again, so that the end of the week is 6.
        last = 6 if name == "day of week" else high
    else:
        last = first
    for number, text in ((first, first_text), (last, last_text or first_text)):
        if not low <= number <= high:
            raise ValueError(f"{name} {text!r} is not {low} to {high}{' or a name' if names else ''}")
    step = int(step_text or 1)
    if not 1 <= step <= high - low:
        hint = f"; write every {step} minutes" if name == "minute" and step else ""
        raise ValueError(f"{name}: a step of {step} is not 1 to {high - low}{hint}")
    if last < first and name == "day of week":
        # From Friday to Monday; to Sunday is the same as to 7.
        return [number % 7 for number in range(first, last + 8, step)]
    if last < first:
        raise ValueError(f"{name} {matched[0]!r} runs backwards")
    return range(first, last + 1, step)


def _number(text: str, names: dict[str, int]) -> int:
    return int(text) if text.isdigit() else names.get(text, -1)
