"""From rows to a file: one renderer module for each format, loaded when it is used first."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from queue_worker.errors import Reject
from queue_worker.processors.report_rows import Table

Format = Literal["csv", "xlsx", "html", "pdf"]

CONTENT_TYPES: Mapping[Format, str] = {
    "csv": "text/csv; charset=utf-8",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "html": "text/html; charset=utf-8",
    "pdf": "application/pdf",
}

_MODULES: Mapping[Format, str] = {name: f"queue_worker.processors.report_{name}" for name in CONTENT_TYPES}


class Rendered(NamedTuple):
    """A finished file: its format, its place in a temporary folder, and its media type."""

    format: Format
    path: Path
    content_type: str


def render(table: Table, name: Format, folder: Path, max_bytes: int, options: Mapping[str, Any]) -> Rendered:
    """Write `table` in the format `name` into `folder`; `options` are those of the format's renderer.

    Raises Reject for what would fail again (a package that is not installed, a file above `max_bytes`, what the
    renderer itself refuses), and OSError.
    """
    try:
        module = importlib.import_module(_MODULES[name])
    except ModuleNotFoundError as error:
        package = "queue-worker[pdf]" if name == "pdf" else error.name
        raise Reject(
            f"report {table.report!r}: format {name} needs the package {error.name}: pip install '{package}'"
        ) from error
    path = folder / f"report.{name}"
    module.render(table, path, **options)
    size = path.stat().st_size
    if size > max_bytes:
        raise Reject(f"report {table.report!r}: the {name} file has {size} bytes, {max_bytes} are allowed")
    return Rendered(name, path, CONTENT_TYPES[name])
