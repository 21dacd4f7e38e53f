"""HTML through Jinja2: templates come from folders alone, rows never become template source."""

from __future__ import annotations

from pathlib import Path

from jinja2 import FileSystemLoader, StrictUndefined, TemplateError
from jinja2.exceptions import TemplateNotFound, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from queue_worker.errors import Reject
from queue_worker.processors.report_rows import Table, show

_BUILT_IN = Path(__file__).parent / "templates" / "reports"


def render(table: Table, path: Path, *, folder: Path | None = None) -> None:
    """Write `table` to `path` through `<report>.html` of `folder`, else `default.html` of it, else the built-in one.

    A template sees `title`, `report`, `columns`, `rows` (values as SQL has them), `numeric` (a flag for each column)
    and `made_at`, and the filter `show`, which turns a value into text. Raises Reject with the template's error.
    """
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader([folder, _BUILT_IN] if folder else [_BUILT_IN]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["show"] = show
    try:
        template = environment.select_template([f"{table.report}.html", "default.html"])
        stream = template.stream(
            title=table.title,
            report=table.report,
            columns=table.columns,
            numeric=table.numeric,
            rows=table.rows,
            made_at=table.made_at,
        )
        stream.enable_buffering(100)
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(stream)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise Reject(f"report {table.report!r}: {_where(error)}: {error}") from error


def _where(error: Exception) -> str:
    if isinstance(error, TemplateSyntaxError):
        return f"template {error.name}, line {error.lineno}"
    # Not the template of the report itself, but one that it includes or extends.
    return "template not found" if isinstance(error, TemplateNotFound) else "the template failed"
