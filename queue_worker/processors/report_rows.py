"""The rows of a report: fetched through SQL `queue_worker.run_report`, with their Python types back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, tzinfo
from decimal import Decimal, InvalidOperation
from typing import Any

from queue_worker.errors import CallRefused, Reject, Retry
from queue_worker.processor import Job

Value = None | bool | int | float | Decimal | str | date | datetime | time
"""What a cell can hold. Anything that SQL has beside these arrives as its text."""

# SQLSTATE classes whose errors come back however often the report is run: data exceptions (a parameter that the
# function cannot use), syntax and access errors (no such function, no right), features that are not supported.
_PERMANENT = ("22", "42", "0A")
_QUERY_CANCELED = "57014"

_NUMERIC = ("int2", "int4", "int8", "oid", "float4", "float8", "numeric")


@dataclass(frozen=True, slots=True)
class Table:
    """What a renderer draws: `numeric[i]` says that column i holds numbers; `made_at` is aware of its time zone."""

    report: str
    title: str
    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: list[list[Value]]
    made_at: datetime


@dataclass(frozen=True, slots=True)
class Query:
    """What to run: the SQL `function` (schema.name) of a `report`, with `params` as its one argument.

    More than `max_rows` rows are refused; times with a time zone are moved to `zone`.
    """

    report: str
    title: str
    function: str
    params: Mapping[str, Any]
    max_rows: int
    zone: tzinfo


def fetch(job: Job[Any], query: Query) -> Table:
    """Run the query and return all its rows.

    Raises Reject for too many rows and for errors that would come again, Retry when the statement timeout struck, and
    TransportError for all else.
    """
    try:
        [answer] = job.call(
            "queue_worker.run_report",
            function=query.function,
            params=dict(query.params),
            max_rows=query.max_rows,
        )
    except CallRefused as error:
        raise _explain(error, query.report, query.function) from error
    rows = answer["data"]
    if isinstance(rows, str | bytes):
        rows = json.loads(rows)
    if len(rows) > query.max_rows:
        raise Reject(f"report {query.report!r}: more than {query.max_rows} rows; narrow it down by its params")
    types = answer["column_types"]
    readers = [_reader(name, query.zone) for name in types]
    for row in rows:
        for index, reader in enumerate(readers):
            if reader is not None and row[index] is not None:
                row[index] = reader(row[index])
    numeric = tuple(name in _NUMERIC for name in types)
    return Table(
        query.report, query.title, tuple(answer["column_names"]), numeric, rows, made_at=datetime.now(query.zone)
    )


def _explain(error: CallRefused, report: str, function: str) -> Exception:
    if error.sqlstate == "42883":
        return Reject(
            f"report {report!r}: cannot run {function}(params jsonb): {error}; create it, or correct"
            " QUEUE_WORKER_REPORTS_ALLOWED"
        )
    if error.sqlstate == _QUERY_CANCELED:
        return Retry(f"report {report!r}: {function} ran into the statement timeout")
    if error.sqlstate.startswith(_PERMANENT):
        return Reject(f"report {report!r}: {function} failed with SQLSTATE {error.sqlstate}: {error}")
    return error


def _reader(sql_type: str, zone: tzinfo) -> Callable[[str], Value] | None:
    """Return what turns the text of an SQL type into a value; None: it stays text."""
    if sql_type == "timestamptz":
        return lambda text: _or_text(lambda value: datetime.fromisoformat(value).astimezone(zone), text)
    convert = _CONVERT.get(sql_type)
    if convert is None:
        return None
    return lambda text: _or_text(convert, text)


def _or_text(convert: Callable[[str], Value], text: str) -> Value:
    # SQL knows values that Python's types lack: infinity, dates BC, 24:00. They stay what SQL called them.
    try:
        return convert(text)
    except (ValueError, OverflowError, InvalidOperation):
        return text


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("not a number that a file format knows")
    return number


def _decimal(text: str) -> Decimal:
    number = Decimal(text)
    if not number.is_finite():
        raise ValueError("not a number that a file format knows")
    return number


_CONVERT: Mapping[str, Callable[[str], Value]] = {
    "int2": int,
    "int4": int,
    "int8": int,
    "oid": int,
    "float4": lambda text: _finite(float(text)),
    "float8": lambda text: _finite(float(text)),
    "numeric": _decimal,
    "bool": lambda text: text == "true",
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timestamp": datetime.fromisoformat,
}


def show(value: Value) -> str:
    """Return a cell as people and programs read it: numbers in full, dates in ISO 8601, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, date | time):
        return value.isoformat()
    return format(value, "f") if isinstance(value, Decimal) else str(value)
