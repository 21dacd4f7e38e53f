"""Errors that carry an HTTP response: whether the other side asked to be left alone, and for how long.

No client library is imported: httpx, requests, aiohttp, urllib, stripe, openai, botocore and the like all keep status
and headers under a few well-known names, on the error or on its `response`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 3600.0
"""Bounds in seconds of a pause that somebody asks for: no hot loop, and nobody stops a queue for days by a header."""

_STATUSES = (429, 503)
_STATUS_NAMES = ("status_code", "status", "http_status", "code")
_CAUSES = 5
_SECONDS = re.compile(r"\d{1,9}(?:\.\d{0,9})?\Z", re.ASCII)


class Asked(NamedTuple):
    """What the other side answered: its status, and the seconds it wants to be left alone for."""

    status: int
    seconds: float


def asked_pause(error: BaseException) -> Asked | None:
    """Return what an error with status 429 or 503 and a Retry-After asks for (RFC 9110 10.2.3, 15.6.4; RFC 6585 4).

    Its causes (`raise ... from error`) are looked at too. None without such a response or with an unreadable header.
    """
    for one in _causes(error):
        for holder in (_attribute(one, "response"), one):
            status, headers = _status(holder), _headers(holder)
            if status in _STATUSES and headers:
                seconds = _retry_after(headers)
                if seconds is not None:
                    return Asked(status, min(max(seconds, SHORTEST_PAUSE), LONGEST_PAUSE))
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    for _ in range(_CAUSES):
        if one is None:
            return
        yield one
        one = one.__cause__


def _attribute(holder: Any, name: str) -> Any:
    try:
        return getattr(holder, name, None)
    except Exception:
        # A property of somebody else's class; httpx's raise RuntimeError where nothing was set.
        return None


def _status(holder: Any) -> int | None:
    if isinstance(holder, Mapping):  # botocore: error.response is a dict
        metadata = holder.get("ResponseMetadata")
        found = metadata.get("HTTPStatusCode") if isinstance(metadata, Mapping) else None
        return found if type(found) is int else None
    values = (_attribute(holder, name) for name in _STATUS_NAMES)
    # http.HTTPStatus is an int as well; True is not a status.
    return next((int(value) for value in values if isinstance(value, int) and not isinstance(value, bool)), None)


def _headers(holder: Any) -> dict[str, str]:
    if isinstance(holder, Mapping):
        metadata = holder.get("ResponseMetadata")
        raw: Any = metadata.get("HTTPHeaders") if isinstance(metadata, Mapping) else None
    else:
        raw = _attribute(holder, "headers")
    try:
        return {_text(name).lower(): _text(value) for name, value in raw.items()}
    except Exception:
        return {}  # nothing that can be read as headers


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("retry-after", "").strip()
    if _SECONDS.match(text):
        return float(text)
    until = _date(text)
    if until is None:
        return None
    # The sender's own clock where it tells it: the difference between two machines' clocks is not a pause.
    return (until - (_date(headers.get("date", "")) or datetime.now(UTC))).total_seconds()


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    # "-0000" and asctime's form give no zone; HTTP dates are always UTC (RFC 9110 5.6.7).
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found
