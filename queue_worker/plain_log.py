"""Log lines in the two forms of `queue_worker.log`, by the standard library alone; for our own words, not for data."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

DEBUG, INFO, ERROR = ("DEBUG", 10), ("INFO", 20), ("ERROR", 40)


class PlainLog:
    """Writes to standard error; `as_json`: one JSON object a line, `level`: the number from which lines are written."""

    def __init__(self, as_json: bool, level: int = 20) -> None:
        self._json = as_json
        self._level = level

    def debug(self, text: str, **fields: object) -> None:
        """Write a line of level DEBUG."""
        self._write(DEBUG, text, fields)

    def info(self, text: str, **fields: object) -> None:
        """Write a line of level INFO."""
        self._write(INFO, text, fields)

    def error(self, text: str, **fields: object) -> None:
        """Write a line of level ERROR."""
        self._write(ERROR, text, fields)

    def _write(self, level: tuple[str, int], text: str, fields: dict[str, object]) -> None:
        name, number = level
        if number < self._level:
            return
        if self._json:
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = json.dumps({"time": time, "level": name, "message": text, **fields})
        else:
            shown = [f'{key}="{value}"' if " " in str(value) else f"{key}={value}" for key, value in fields.items()]
            line = " ".join([f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}", f"{name:<8}", text, *shown])
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except OSError:
            return  # whoever read our lines has gone; the work goes on
