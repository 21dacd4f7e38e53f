"""Log lines by loguru: short ones for people, or one JSON object per line; secrets never get through.

A record is one line. Only tracebacks in the human format take more, and each of their lines is indented, so that
no text from outside can pass for a record of its own (CWE-117).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import threading
import traceback
from collections.abc import Mapping
from datetime import UTC
from typing import TYPE_CHECKING, Any, TextIO

from loguru import logger

from queue_worker.redaction import (
    MASK,
    escape,
    escape_json,
    mask_address,
    redact,
    register_secret,
    secret_name,
)

if TYPE_CHECKING:
    from loguru import Message, Record, RecordException

__all__ = ["configure", "enabled", "escape", "mask_address", "redact", "register_secret"]

_LONGEST_TRACEBACK = 16_384
_RESERVED = frozenset({"time", "level", "message", "exception"})


class _State:
    """What `configure` has set."""

    lock = threading.Lock()
    handler: int = 0  # loguru starts with a handler of this number on stderr
    level: int = logger.level("INFO").no


def configure(level: str = "INFO", format: str = "human", stream: TextIO | None = None) -> None:  # noqa: A002
    """Write the log to `stream` (None: standard error) from `level` up; replaces what an earlier call set.

    `format` is `human`, `json` or `auto` (human on a terminal, else json). Warnings of libraries that use the
    standard library's logging come in the same form. Handlers that a program added to loguru itself stay.
    """
    out = sys.stderr if stream is None else stream
    as_json = format == "json" or (format == "auto" and not out.isatty())
    render = _json_line if as_json else _human_lines

    def sink(message: Message) -> None:
        # One write for one record: a process manager may stamp and mix what comes in pieces.
        out.write(render(message.record))
        out.flush()

    with _State.lock:
        with contextlib.suppress(ValueError):  # the program has removed it itself
            logger.remove(_State.handler)
        # A format that is a function keeps loguru from rendering tracebacks, which `render` does with redaction.
        _State.handler = logger.add(sink, level=level, format=lambda record: "", backtrace=False, diagnose=False)
        _State.level = logger.level(level).no
        _take_standard_logging()


def configured() -> bool:
    """Whether the lines are written by us, with their fields; else by what the host program gave loguru."""
    return _State.handler != 0


def enabled(level: str) -> bool:
    """Whether records of `level` are written."""
    return logger.level(level).no >= _State.level


def _json_line(record: Record) -> str:
    line: dict[str, Any] = {
        "time": record["time"].astimezone(UTC).isoformat(timespec="milliseconds"),
        "level": record["level"].name,
        "message": redact(record["message"]),
    }
    for name, value in record["extra"].items():
        line[f"{name}_" if name in _RESERVED else name] = _safe(name, value)
    if record["exception"] is not None:
        line["exception"] = _traceback(record["exception"])
    return escape_json(json.dumps(line, ensure_ascii=False, allow_nan=False, default=str)) + "\n"


def _human_lines(record: Record) -> str:
    parts = [
        record["time"].strftime("%Y-%m-%d %H:%M:%S"),
        f"{record['level'].name:<8}",
        escape(redact(record["message"])),
    ]
    lines = [" ".join([*parts, *words(record["extra"])])]
    if record["exception"] is not None:
        lines += ["    " + escape(line) for line in _traceback(record["exception"]).split("\n")]
    return "\n".join(lines) + "\n"


def words(extra: Mapping[str, Any]) -> list[str]:
    """Return the fields of a line as `name=value`, without secrets and harmless to a terminal."""
    return [f"{escape(name)}={_word(_safe(name, value))}" for name, value in extra.items() if name != "event"]


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, str) and (not text or any(sign in text for sign in ' "=')):
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return escape(text)


def _safe(name: str, value: Any, depth: int = 0) -> Any:
    """Return an extra as plain JSON data without secrets."""
    if value is None or isinstance(value, bool):
        return value
    if secret_name(name):
        return MASK
    if isinstance(value, Mapping) and depth < 4:
        return {redact(str(key)): _safe(str(key), item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)) and depth < 4:
        return [_safe(name, item, depth + 1) for item in value]
    return _number(value) if isinstance(value, (int, float)) else redact(_text(value))


def _number(value: float) -> int | float | str:
    if isinstance(value, int):
        return value if value.bit_length() <= 1024 else "<huge number>"  # Python refuses to print the longest
    return round(value, 6) if math.isfinite(value) else str(value)  # JSON has no NaN and no infinity


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} without text>"


def _traceback(found: RecordException) -> str:
    text = redact("".join(traceback.format_exception(found.type, found.value, found.traceback)).rstrip("\n"))
    if len(text) <= _LONGEST_TRACEBACK:
        return text
    # The end names the error, the beginning where it came from.
    half = _LONGEST_TRACEBACK // 2
    return f"{text[:half]}\n[...]\n{text[-half:]}"


class _ToLoguru(logging.Handler):
    """Passes records of the standard library's logging on."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level: str | int = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        logger.bind(logger=record.name).opt(exception=record.exc_info).log(level, "{}", record.getMessage())


def _take_standard_logging() -> None:
    root = logging.getLogger()
    if not any(isinstance(handler, _ToLoguru) for handler in root.handlers):
        root.addHandler(_ToLoguru(level=logging.WARNING))
