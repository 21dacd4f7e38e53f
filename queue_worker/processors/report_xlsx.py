"""XLSX through xlsxwriter: texts never become formulas or links, numbers and dates are real ones."""

from __future__ import annotations

import unicodedata
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import xlsxwriter

from queue_worker.errors import Reject
from queue_worker.processors.report_rows import Table, Value, show

MAX_ROWS = 1_048_575
"""Rows of a sheet below its heading (Excel's specification)."""
_MAX_COLUMNS = 16_384
_MAX_TEXT = 32_767
_CUT = " [cut: a cell holds 32767 characters]"
_FIRST_YEAR = 1900  # a sheet knows no earlier dates
_SAMPLE = 200
_MAX_WIDTH = 60


def render(table: Table, path: Path) -> None:
    """Write `table` to `path`; raises Reject for more rows or columns than a sheet has, and OSError."""
    if len(table.rows) > MAX_ROWS or len(table.columns) > _MAX_COLUMNS:
        raise Reject(
            f"report {table.report!r}: a sheet has {MAX_ROWS} rows and {_MAX_COLUMNS} columns at most: use csv"
        )
    options = {
        "constant_memory": True,
        "tmpdir": str(path.parent),
        "strings_to_formulas": False,
        "strings_to_urls": False,
        "strings_to_numbers": False,
    }
    with xlsxwriter.Workbook(path, options) as book:
        book.set_properties({"title": table.title, "created": table.made_at.replace(tzinfo=None)})
        # Excel keeps the name History for itself.
        sheet = book.add_worksheet("Report" if table.report.lower() == "history" else table.report[:31])
        _write(table, book, sheet)


def _write(table: Table, book: Any, sheet: Any) -> None:
    formats = {
        datetime: book.add_format({"num_format": "yyyy-mm-dd hh:mm:ss"}),
        date: book.add_format({"num_format": "yyyy-mm-dd"}),
        time: book.add_format({"num_format": "hh:mm:ss"}),
    }
    heading = book.add_format({"bold": True, "bg_color": "#E8EDF3", "bottom": 1})
    for index, width in enumerate(_widths(table)):
        sheet.set_column(index, index, width)
    for index, name in enumerate(table.columns):
        sheet.write_string(0, index, name, heading)
    if table.columns:
        sheet.freeze_panes(1, 0)
        sheet.autofilter(0, 0, max(len(table.rows), 1), len(table.columns) - 1)
    for number, row in enumerate(table.rows, start=1):
        for index, value in enumerate(row):
            _cell(sheet, number, index, value, formats)


def _cell(sheet: Any, row: int, column: int, value: Value, formats: dict[type, Any]) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        sheet.write_boolean(row, column, value)
    elif isinstance(value, int | float | Decimal) and _exact(value):
        sheet.write_number(row, column, value)
    elif isinstance(value, time) or (isinstance(value, date) and value.year >= _FIRST_YEAR):
        # A sheet knows no zones: the wall clock of the report's zone is kept.
        naive = value.replace(tzinfo=None) if isinstance(value, datetime) else value
        sheet.write_datetime(row, column, naive, formats[type(value)])
    else:
        sheet.write_string(row, column, _fit(show(value)))


def _exact(value: int | float | Decimal) -> bool:
    # A sheet calculates with binary doubles and shows 15 digits; a longer number is kept whole as text.
    if isinstance(value, float):
        return True
    number = Decimal(value)
    digits = "".join(map(str, number.as_tuple().digits)).strip("0")
    return len(digits) <= 15 and abs(number.adjusted()) < 300


def _fit(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - len(_CUT)] + _CUT


def _widths(table: Table) -> list[int]:
    """Return the width of each column in characters, from the heading and the first rows."""
    widths = [_width(name) + 3 for name in table.columns]
    for row in table.rows[:_SAMPLE]:
        for index, value in enumerate(row):
            widths[index] = max(widths[index], _width(show(value)) + 1)
    return [min(width, _MAX_WIDTH) for width in widths]


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text[:_MAX_WIDTH])
