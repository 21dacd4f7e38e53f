"""How values travel over REST: arguments as JSON, an answer's columns back into what psycopg would give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from queue_worker.transport import Rows
from queue_worker.transport.json_text import load_json

TIMESTAMP = "timestamp with time zone"


def plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments as JSON can hold them; SQL `call` gives each the type of its parameter again."""
    return {name: _plain(value) for name, value in params.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, (UUID, Decimal)):
        return str(value)
    return value


def rows_of(answer: Any, *, receipts: bool) -> Rows:
    """Return the rows of an answer of SQL `call`.

    `receipts`: for the engine, so a timestamp stays the text that Postgres sent, and goes back as it is. Raises
    ValueError for anything that is no such answer.
    """
    try:
        columns = tuple(name for name, _ in answer["columns"])
        readers = [_READERS.get(kind) for _, kind in answer["columns"]]
        if receipts:
            readers = [None if kind == TIMESTAMP else _READERS.get(kind) for _, kind in answer["columns"]]
        if not any(readers):
            return Rows(columns, [tuple(row) for row in answer["rows"]])
        return Rows(columns, [_read(row, readers) for row in answer["rows"]])
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an answer of queue_worker.call: {type(error).__name__}") from None


def _read(row: list[Any], readers: list[Callable[[str], Any] | None]) -> tuple[Any, ...]:
    return tuple(
        value if reader is None or value is None else reader(value) for value, reader in zip(row, readers, strict=True)
    )


def _timestamp(text: str) -> datetime:
    # Python has no infinity; psycopg refuses such values, an operator's list should not.
    if text.endswith("infinity"):
        return datetime(1 if text.startswith("-") else 9999, 1, 1, tzinfo=UTC)
    return datetime.fromisoformat(text)


_READERS: Mapping[str, Callable[[Any], Any]] = {
    TIMESTAMP: _timestamp,
    "timestamp without time zone": datetime.fromisoformat,
    "date": date.fromisoformat,
    "uuid": UUID,
    "numeric": lambda value: Decimal(str(value)),
    "double precision": float,
    "json": load_json,
    "jsonb": load_json,
}
