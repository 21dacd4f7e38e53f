"""`queue-worker demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from queue_worker.cli import common
from queue_worker.cli.common import AsJson
from queue_worker.platforms import require_posix


def register(app: typer.Typer) -> None:
    """Add the command."""
    common.command(app, "demo")(demo)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the database up until Ctrl+C.")] = False,
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where it lives; emptied first.")] = Path(
        ".queue-worker/demo"
    ),
    as_json: AsJson = False,
) -> int:
    """Run all three queues for real, on an embedded Postgres."""
    require_posix("the demo")
    from queue_worker.cli.demo_screen import Screen
    from queue_worker.demo import run

    return run(folder, Screen(as_json), keep=keep)
