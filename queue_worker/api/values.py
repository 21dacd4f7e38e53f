"""What comes in as text or JSON, checked: bodies, ids, limits. Whatever is wrong raises ApiError with one line."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import Path, Query, Request

from queue_worker.api.answers import ApiError
from queue_worker.errors import UsageError
from queue_worker.redaction import redact, secret_name
from queue_worker.sending import json_text

MAX_DEPTH = 64
MAX_LISTED = 500
_LARGEST_ID = 2**63 - 1
_PRIVATE = ("card", "iban", "cvc", "cvv")
_MASK = "***"

QueueName = Annotated[str, Path(description="Name of the queue", examples=["email"], max_length=200)]
MessageId = Annotated[str, Path(description="Id of the message", examples=["42"], max_length=200)]
Limit = Annotated[int, Query(ge=1, le=MAX_LISTED, description="Rows at most")]


async def json_body(request: Request) -> Any:
    """Return the JSON of a request's body (None where it is empty); raises ApiError 422."""
    raw = await request.body()
    if not raw.strip():
        return None
    try:
        data = json.loads(raw, parse_constant=_refuse_constant)
    except RecursionError:
        raise ApiError(422, f"the body is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise ApiError(422, f"the body is not JSON: {str(error).partition(':')[0].lower()}") from None
    if deeper(data, MAX_DEPTH):
        raise ApiError(422, f"the body is nested deeper than {MAX_DEPTH} levels")
    try:
        json_text(data, "the body")
    except UsageError as error:
        raise ApiError(422, str(error)) from None
    return data


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def deeper(data: Any, levels: int) -> bool:
    """Whether objects and arrays are nested deeper than `levels`."""
    level = [data] if isinstance(data, (dict, list)) else []
    for _ in range(levels):
        parts = [item for one in level for item in (one.values() if isinstance(one, dict) else one)]
        level = [item for item in parts if isinstance(item, (dict, list))]
    return bool(level)


def number(text: str, what: str = "the id") -> int:
    """Return the id that `text` says; raises ApiError 422."""
    if not text.isascii() or not text.isdecimal() or not 0 < len(text) < 20 or not 1 <= int(text) <= _LARGEST_ID:
        raise ApiError(422, f"{what} must be a whole number above 0")
    return int(text)


def numbers(given: Any, what: str) -> list[int] | None:
    """Return ids from JSON, as numbers or texts; None for None; raises ApiError 422."""
    if given is None:
        return None
    if not isinstance(given, list) or any(isinstance(one, bool) or not isinstance(one, (int, str)) for one in given):
        raise ApiError(422, f"{what} must be a list of ids")
    return [number(str(one), f"each of {what}") for one in given]


def redacted(value: Any) -> Any:
    """Return JSON data with secrets hidden: by the name of their field, and what looks like one in a text."""
    if isinstance(value, dict):
        return {name: _MASK if _hidden(name) and item is not None else redacted(item) for name, item in value.items()}
    if isinstance(value, list):
        return [redacted(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def _hidden(name: str) -> bool:
    return secret_name(name) or any(word in name.lower() for word in _PRIVATE)
