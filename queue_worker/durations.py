"""Lengths of time as people write them: a number of seconds, a timedelta, or a text such as `10 seconds` or `1h30m`."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from queue_worker.errors import UsageError

Duration = int | float | str | timedelta
"""Seconds, a timedelta, or a text: `10s`, `5m`, `1h30m`, `2 days`, `1 hour 30 minutes`, `90`."""

LONGEST = 365 * 86_400
"""The longest duration of all, in seconds."""

_SIZES = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPELLINGS = {
    "s": ("sec", "secs", "second", "seconds"),
    "m": ("min", "mins", "minute", "minutes"),
    "h": ("hr", "hrs", "hour", "hours"),
    "d": ("day", "days"),
    "w": ("week", "weeks"),
}
_UNITS = {word: _SIZES[unit] for unit, words in _SPELLINGS.items() for word in (unit, *words)}
_PART = re.compile(r"\s*([0-9]{1,9})\s*([a-z]*)", re.IGNORECASE)


def seconds(value: Duration, name: str) -> float:
    """Return the seconds that `value` means; raises UsageError, one line that begins with `name`.

    In a text the numbers are whole, and one without a unit means seconds. Everything is between 0 and 365 days.
    """
    if isinstance(value, str):
        found: float = _read(value, name)
    elif isinstance(value, timedelta):
        found = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        # Compared before it is converted: an integer of a thousand digits does not fit into a float.
        found = math.inf if value > LONGEST else float(value)
    else:
        raise UsageError(f"{name} must be seconds, a timedelta or a text such as '10s', not {type(value).__name__}")
    if not found >= 0:
        raise UsageError(f"{name} {value!r:.40}: a duration is 0 or more")
    if found > LONGEST:
        raise UsageError(f"{name} {value!r:.40}: at most 365d")
    return found


def whole_seconds(value: Duration, name: str) -> int:
    """Return `seconds(value, name)` rounded up, so that nothing is due too early."""
    return math.ceil(seconds(value, name))


def _read(text: str, name: str) -> int:
    wrong = UsageError(f"{name} {text!r:.40}: write a duration such as 10s, 5m, 1h, 2d, or whole seconds")
    total, at, parts = 0, 0, 0
    stripped = text.rstrip()
    while at < len(stripped):
        part = _PART.match(stripped, at)
        if part is None:
            raise wrong
        number, unit = part[1], part[2].lower()
        alone = parts == 0 and part.end() == len(stripped)
        if unit not in _UNITS and not (unit == "" and alone):
            raise wrong
        total += int(number) * _UNITS.get(unit, 1)
        at, parts = part.end(), parts + 1
    if not parts:
        raise wrong
    return total
