"""JSON as text: what Python cannot hold never spoils what stands beside it."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import from_json


def load_json(data: str | bytes) -> Any:
    """Parse JSON; what Python cannot hold (a number of 5,000 digits, endless nesting) stays text."""
    try:
        return from_json(data)
    except (ValueError, RecursionError):
        return data if isinstance(data, str) else bytes(data).decode("utf-8", "replace")


def dump_json(value: Any) -> str:
    """Return JSON text; NaN and Infinity are refused with ValueError, because JSON has neither."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
