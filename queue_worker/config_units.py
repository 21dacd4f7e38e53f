"""Sizes and lengths of time as people write them in settings."""

from __future__ import annotations

import re
from typing import Any

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(?:i?b)?|b|bytes)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}

_SPANS = {
    **dict.fromkeys(("", "s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86_400.0),
}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_size(value: Any) -> Any:
    """Return the bytes that a text such as `512MB`, `1.5G` or `1048576` says; raises ValueError with the rule.

    1 KB is 1024 bytes, as PM2, systemd and Docker count. What is no text is returned as it is.
    """
    if not isinstance(value, str):
        return value
    found = _SIZE.fullmatch(value.strip())
    if not found:
        raise ValueError("must be a size such as 512MB, 1.5G or a number of bytes")
    return int(float(found[1]) * 1024 ** _POWERS[(found[2] or "").lower()])


def parse_span(value: Any) -> Any:
    """Return the seconds that a text such as `90`, `15m`, `1h30m` or `2 days` says; raises ValueError with the rule.

    What is no text is returned as it is.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    parts = [(found[1], found[2].lower()) for found in _SPAN.finditer(text)]
    known = all(unit in _SPANS and (unit or len(parts) == 1) for _, unit in parts)
    if not parts or not known or not re.fullmatch(f"(?:{_SPAN.pattern})+", text, re.IGNORECASE):
        raise ValueError("must be a length of time such as 90, 90s, 15m, 1h30m or 2 days")
    return sum(float(number) * _SPANS[unit] for number, unit in parts)
