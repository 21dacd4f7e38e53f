"""CSV as RFC 4180 has it, in UTF-8 with a byte order mark, without which Excel garbles all but Latin letters."""

from __future__ import annotations

import csv
import re
from decimal import Decimal
from pathlib import Path

from queue_worker.processors.report_rows import Table, Value, show

# A spreadsheet takes a cell that begins so for a formula (OWASP: CSV injection); it skips blanks, quotes and
# invisible characters first, and East Asian ones know the full-width signs too.
_FORMULA = re.compile("[\\s'\"\u200b\u200e\u200f\u2060\ufeff]*?[=+\\-@\t\r＝＋－＠]")


def render(table: Table, path: Path, *, delimiter: str = ",") -> None:
    """Write `table` to `path`; raises OSError."""
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\r\n")
        if table.columns:
            writer.writerow([guard(name) for name in table.columns])
        writer.writerows([cell(value) for value in row] for row in table.rows)


def cell(value: Value) -> str:
    """Return a value as the text of its cell: real numbers stay numbers, negative ones too, texts are guarded."""
    text = show(value)
    return text if isinstance(value, int | float | Decimal) else guard(text)


def guard(text: str) -> str:
    """Put `'` before a text that a spreadsheet would run as a formula."""
    return f"'{text}" if _FORMULA.match(text) else text
