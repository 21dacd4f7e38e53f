"""What a handler returned, as the JSON text that is kept where the queue option `results` is on."""

from __future__ import annotations

import re
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

from queue_worker.errors import QueueWorkerError

MAX_BYTES = 256 * 1024
"""Longest result that is kept, in bytes of JSON."""

# Postgres cannot hold a NUL in jsonb. An even number of backslashes before it only spells the text out.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class ResultRefused(QueueWorkerError):
    """The handler succeeded, but what it returned cannot be kept; it counts as a failed attempt."""


def result_text(value: Any) -> str:
    """Return `value` as JSON text; models, dataclasses, dates and the like as pydantic writes them.

    NaN and infinity become null. Raises ResultRefused for what is no JSON, holds a NUL, or is longer than `MAX_BYTES`.
    """
    try:
        text = to_json(value, inf_nan_mode="null")
        found = text.decode()
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise ResultRefused(f"the result of type {type(value).__name__} is no JSON: {error}") from None
    if len(text) > MAX_BYTES:
        raise ResultRefused(f"result too large: {len(text)} bytes of JSON, at most {MAX_BYTES} are kept")
    if _NUL.search(text):
        raise ResultRefused("the result holds a NUL character, which Postgres cannot store")
    return found
