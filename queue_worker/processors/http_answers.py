"""What headers of a provider's HTTP answer mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number or a date (RFC 9110 section 10.2.3)."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            then = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = ((then if then.tzinfo else then.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def header(headers: Mapping[str, str] | None, name: str) -> str | None:
    """Return a header whatever the case of its name."""
    return next((value for key, value in (headers or {}).items() if key.lower() == name.lower()), None)
