"""What commands print: tables for people, documents for programs. Nothing from outside can steer the terminal."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from queue_worker.log import escape
from queue_worker.redaction import escape_json

if TYPE_CHECKING:
    from rich.table import Table

_IDS = ("id", "ids", "msg_id", "last_msg_id", "dead_id", "redriven_from", "audit_id")
_THEIRS = ("payload", "headers", "result")
"""Values that people have put in: shown as they are."""


def ready(value: Any, name: str = "") -> Any:
    """Return a value as JSON data: times in ISO 8601, ids as strings, because JavaScript rounds large numbers."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key: item if key in _THEIRS else ready(item, key) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [ready(item, name) for item in value]
    return str(value) if name in _IDS and isinstance(value, int) else value


def document(value: Any, *, indent: int | None = 2) -> str:
    """Return `value` as JSON text without characters that a terminal would obey."""
    return _text(ready(value), indent)


def _text(data: Any, indent: int | None) -> str:
    text = json.dumps(data, ensure_ascii=False, indent=indent, default=str)
    return "\n".join(escape_json(line) for line in text.split("\n"))


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document."""
    print(document(value, indent=indent), flush=True)


def moment(value: datetime | None) -> str:
    """Return a time as people read it, in this machine's time zone; an empty string for None."""
    return "" if value is None else value.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def span(seconds: float | None) -> str:
    """Return a length of time in the largest fitting unit: `12 s`, `3 min`, `5 h`, `2 d`; empty for None."""
    if seconds is None:
        return ""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def first_line(text: str | None, longest: int = 100) -> str:
    """Return the first line of `text`, cut to `longest` characters."""
    line = (text or "").split("\n", 1)[0]
    return line if len(line) <= longest else line[: longest - 1] + "…"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """Print rows under their column names: with rich on a terminal, as plain aligned text elsewhere."""
    if not sys.stdout.isatty():
        print("\n".join(plain_table(columns, rows, title)))
        return
    from rich.console import Console

    Console(width=shutil.get_terminal_size().columns).print(rich_table(columns, rows, title))


def rich_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> Table:
    """Return a table for rich; texts are taken as they are, never as markup. A `Text` keeps its colours."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    listed = list(rows)
    for position, column in enumerate(columns):
        numbers = bool(listed) and all(isinstance(row[position], (int, float)) for row in listed)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in listed:
        table.add_row(*(value if isinstance(value, Text) else Text(cell(value)) for value in row))
    return table


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> list[str]:
    """Return the lines of a table without any decoration."""
    texts = [list(columns), *([cell(value) for value in row] for row in rows)]
    widths = [max(_width(line[position]) for line in texts) for position in range(len(columns))]
    lines = [
        "  ".join(text + " " * (width - _width(text)) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in texts
    ]
    return [title, *lines] if title else lines


def _width(text: str) -> int:
    """Return how many columns a text takes: letters of Chinese, Japanese and Korean take two."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def cell(value: Any) -> str:
    """Return a value as the text of a cell, on one line."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, (list, tuple)):
        return escape(", ".join(map(str, value)))
    return escape(str(value))


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print names and values, one a line; JSON and texts of several lines are indented below their name."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        if isinstance(value, (dict, list)):
            lines = _text(value if name in _THEIRS else ready(value), 2).split("\n")
        elif isinstance(value, str):
            lines = [escape(line) for line in value.split("\n")]
        else:
            lines = [cell(value)]
        if len(lines) == 1:
            print(f"{name.ljust(width)}  {lines[0]}".rstrip())
        else:
            print(name, *(f"    {line}" for line in lines), sep="\n")
