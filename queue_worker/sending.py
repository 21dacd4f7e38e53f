"""What a producer may say about a message, as SQL `queue_worker.send` takes it: payloads as JSON, options by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Any, Literal, TypedDict

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python

from queue_worker.durations import Duration, whole_seconds
from queue_worker.errors import InvalidPayload, UsageError

UniqueMode = Literal["keep", "replace", "preserve_run_at", "unsafe_dedupe"]
UniqueScope = Literal["waiting", "active"]

_INT4 = 2**31 - 1


class SendOptions(TypedDict, total=False):
    """Options of one message, all optional; None counts as not given.

    `delay` or `run_at`: not before. `expires_in` or `expires_at`: not after; it is then a dead letter that never ran.
    `priority`: 0 to 100, higher first. `unique_key`: one message for each key, as `unique_mode`, `unique_scope` and
    `unique_for` say. `group_key`: strict order within the key, on ordered queues. `max_attempts`, `retry_delay` and
    `timeout` beat the settings of the queue. `headers`: a JSON object of your own.
    """

    delay: Duration | None
    run_at: datetime | None
    priority: int | None
    unique_key: str | None
    unique_mode: UniqueMode | None
    unique_scope: UniqueScope | None
    unique_for: Duration | None
    group_key: str | None
    expires_at: datetime | None
    expires_in: Duration | None
    max_attempts: int | None
    retry_delay: Duration | None
    timeout: Duration | None
    headers: Mapping[str, Any] | None


class Outgoing:
    """One message of a batch with options of its own: `Outgoing(payload, delay="1h")`; see `SendOptions`."""

    __slots__ = ("options", "payload")

    def __init__(self, payload: Any, **options: Any) -> None:
        self.payload = payload
        self.options = options


_DURATIONS = {
    "delay": "delay_seconds",
    "retry_delay": "retry_delay_seconds",
    "timeout": "timeout_seconds",
    "unique_for": "unique_seconds",
}
_NAMES = (*SendOptions.__annotations__, *_DURATIONS.values())


def _utc_now() -> datetime:
    return datetime.now(UTC)


def sql_options(options: Mapping[str, Any], now: Callable[[], datetime] = _utc_now) -> dict[str, Any]:
    """Return `options` as arguments of SQL `send`; raises UsageError with one line.

    Takes the names of `SendOptions` and those of SQL (`delay_seconds`). `now` is asked for `expires_in`.
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _NAMES:
            near = get_close_matches(name, _NAMES, 1)
            hint = f"did you mean {near[0]}?" if near else "known: " + ", ".join(SendOptions.__annotations__)
            raise UsageError(f"unknown option {name!r} of send; {hint}")
        if value is None:
            continue
        target, said = _option(name, value, now)
        if target in found:
            raise UsageError(f"give {name} or {_other_name(name, options)}, not both")
        found[target] = said
    if "run_at" in found and "delay_seconds" in found:
        raise UsageError("give delay or run_at, not both")
    return found


def _option(name: str, value: Any, now: Callable[[], datetime]) -> tuple[str, Any]:
    """Return the SQL name of one option, and its value."""
    if name in _DURATIONS or name in _DURATIONS.values():
        return _DURATIONS.get(name, name), whole_seconds(value, name)
    if name == "expires_in":
        # Computed here: the deadline is the sender's, however long the message travels.
        return "expires_at", now() + timedelta(seconds=whole_seconds(value, name))
    if name in ("run_at", "expires_at"):
        return name, _moment(value, name)
    if name == "headers":
        return name, _headers(value)
    if name in ("priority", "max_attempts"):
        if isinstance(value, bool) or not isinstance(value, int) or not -_INT4 <= value <= _INT4:
            raise UsageError(f"{name} must be a whole number, not {value!r:.40}")
    elif not isinstance(value, str):
        raise UsageError(f"{name} must be a text, not {type(value).__name__}")
    return name, value


def _other_name(name: str, options: Mapping[str, Any]) -> str:
    pairs = [*_DURATIONS.items(), ("expires_in", "expires_at")]
    return next(a if b == name else b for a, b in pairs if name in (a, b) and a in options and b in options)


def _moment(value: Any, name: str) -> datetime:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise UsageError(f"{name} {value!r:.40}: write a time such as 2030-01-31T18:00Z") from None
    if not isinstance(value, datetime):
        raise UsageError(f"{name} must be a datetime, not {type(value).__name__}")
    if value.tzinfo is None:
        raise UsageError(f"{name} {value.isoformat()}: add the time zone, as datetime.now(UTC) has it")
    return value


def _headers(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"headers must be a JSON object, not {type(value).__name__}")
    data: dict[str, Any] = to_json_data(dict(value), "headers")
    json_text(data, "headers")
    return data


def payload_of(payload: Any, check: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """Return a payload as JSON data; raises UsageError with one line that names the field, never its value.

    Takes a mapping, a pydantic model or a dataclass. `check` is how the consumer reads it: it takes JSON text and
    raises InvalidPayload.
    """
    if not isinstance(payload, (Mapping, BaseModel)) and not _is_dataclass(payload):
        raise UsageError(f"a payload is a dict, a pydantic model or a dataclass, not {type(payload).__name__}")
    data = to_json_data(payload, "the payload")
    if not isinstance(data, dict):
        raise UsageError(f"a payload is a JSON object, not {type(data).__name__}")
    text = json_text(data, "the payload")
    # pydantic writes NaN as null in some places, which would change the message without a word.
    if "null" in text and _holds_nan(payload):
        raise UsageError("the payload cannot be written as JSON: it holds NaN or Infinity")
    if check is not None:
        try:
            check(text)
        except InvalidPayload as error:
            raise UsageError(f"the payload does not fit its processor: {error}") from None
    return data


def _holds_nan(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, BaseModel):
        return _holds_nan(dict(value))
    if _is_dataclass(value):
        return any(_holds_nan(getattr(value, field.name, None)) for field in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return any(map(_holds_nan, value.values()))
    return isinstance(value, (list, tuple, set, frozenset)) and any(map(_holds_nan, value))


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def to_json_data(value: Any, what: str) -> Any:
    """Return `value` as what JSON knows: models, dataclasses, dates, decimals, UUIDs and sets become data and text.

    Raises UsageError, which calls it `what`.
    """
    try:
        # By alias: that is how the consumer reads it.
        return to_jsonable_python(value, by_alias=True)
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise UsageError(f"{what} cannot be written as JSON: {error}") from None


def json_text(data: Any, what: str) -> str:
    """Return JSON data as text with sorted keys; raises UsageError for what Postgres would refuse."""
    try:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} holds half of a surrogate pair, which is no character") from None
    except RecursionError:
        raise UsageError(f"{what} is nested too deeply") from None
    except (ValueError, TypeError) as error:
        why = "it holds NaN or Infinity" if "float" in str(error) else str(error)
        raise UsageError(f"{what} cannot be written as JSON: {why}") from None
    if "\\u0000" in text and _has_nul(data):
        raise UsageError(f"{what} holds the character NUL, which Postgres cannot store")
    return text


def _has_nul(data: Any) -> bool:
    if isinstance(data, str):
        return "\0" in data
    if isinstance(data, Mapping):
        return any(_has_nul(key) or _has_nul(item) for key, item in data.items())
    return isinstance(data, Sequence) and any(map(_has_nul, data))


def fingerprint(data: Any, what: str) -> str:
    """Return a short hash that is equal for equal JSON data, whatever the order of the keys, in every process."""
    return hashlib.sha256(json_text(data, what).encode()).hexdigest()[:32]
