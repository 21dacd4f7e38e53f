"""Texts of the command line as values; whatever is wrong raises UsageError with one line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from queue_worker.config import check_queue_name
from queue_worker.durations import whole_seconds
from queue_worker.errors import ConfigError, UsageError

_LARGEST_ID = 2**63 - 1
_JSON_TYPES = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}


def queue_name(text: str) -> str:
    """Return `text` if it can be the name of a queue."""
    try:
        return check_queue_name(text)
    except ConfigError as error:
        raise UsageError(str(error)) from None


def duration(text: str, option: str) -> int:
    """Return the seconds that `text` says: `10s`, `5m`, `1h30m`, `2 days`, or plain seconds."""
    return whole_seconds(text, option)


def instant(text: str, option: str) -> datetime:
    """Return the moment that an ISO 8601 text with its offset names."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"{option} {text!r:.40}: write a time such as 2030-01-31T18:00Z") from None
    if found.tzinfo is None:
        raise UsageError(f"{option} {text!r}: add the time zone, as in {text}Z or {text}+02:00")
    return found


def ids(texts: Sequence[str]) -> list[int]:
    """Return ids from words that may hold several: `3`, `4,5`; each once, in this order."""
    found: dict[int, None] = {}
    for text in [part for word in texts for part in word.split(",") if part.strip()]:
        number = int(text) if re.fullmatch(r"\s*[0-9]{1,19}\s*", text) else 0
        if not 0 < number <= _LARGEST_ID:
            raise UsageError(f"{text.strip()!r:.40} is not an id: ids are whole numbers from 1")
        found[number] = None
    return list(found)


def one_id(text: str) -> int:
    """Return one id."""
    found = ids([text])
    if len(found) != 1:
        raise UsageError(f"{text!r:.40} is not an id: ids are whole numbers from 1")
    return found[0]


def json_text(argument: str) -> tuple[str, str]:
    """Return JSON text and the name of its source: the argument itself, `-` standard input, `@FILE` a file."""
    if argument == "-":
        name, raw = "standard input", sys.stdin.buffer.read()
    elif argument.startswith("@"):
        name = argument[1:]
        try:
            raw = Path(name).read_bytes()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise UsageError(f"{name!r} cannot be read: {why}") from None
    else:
        name, raw = "the payload", argument.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8-sig"), name
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text: see byte {error.start + 1}") from None


def parse_json(text: str, name: str) -> Any:
    """Return the value of JSON text; the line for an error says where it is."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except json.JSONDecodeError as error:
        raise UsageError(f"{name} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except UnicodeEncodeError:
        raise UsageError(f"{name} holds half of a surrogate pair (\\ud800 to \\udfff), which is no character") from None
    except RecursionError:
        raise UsageError(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"{name} is not JSON: {error}") from None
    return value


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON number")


def json_type(value: Any) -> str:
    """Return what a JSON value is, in words."""
    return _JSON_TYPES.get(type(value), "a number")
