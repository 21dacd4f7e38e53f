"""How far running messages are, as their handlers say; parts of status and show."""

from __future__ import annotations

from typing import Any

from queue_worker.cli.database import Operator
from queue_worker.cli.output import moment, print_table

_COLUMNS = ("queue", "message", "done", "note", "at")


def progress(operator: Operator) -> list[dict[str, Any]]:
    """Return the rows of the view `progress`."""
    return operator.call("list_progress")


def progress_text(row: dict[str, Any]) -> str:
    """Return `3 of 4 (75 %)`, or `3` where the total is unknown."""
    done, total = row["done"], row["total"]
    if total is None:
        return f"{done:g}"
    share = f" ({100 * done / total:.0f} %)" if total > 0 else ""
    return f"{done:g} of {total:g}{share}"


def print_progress(rows: list[dict[str, Any]]) -> None:
    """Write a table of running messages; nothing where no handler has said anything."""
    if rows:
        print()
        print_table(
            _COLUMNS,
            [(row["queue"], row["msg_id"], progress_text(row), row["note"], moment(row["at"])) for row in rows],
        )
