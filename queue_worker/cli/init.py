"""`queue-worker init`: writes the files by which PM2, systemd or Docker Compose runs the worker."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from queue_worker.cli import common
from queue_worker.errors import UsageError


class Kind(StrEnum):
    """Who is to run the worker."""

    pm2 = "pm2"
    systemd = "systemd"
    compose = "compose"


def register(app: typer.Typer) -> None:
    """Add the command."""
    common.command(app, "init")(init)


def init(
    kind: Annotated[Kind, typer.Argument(metavar="pm2|systemd|compose", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    print_it: Annotated[bool, typer.Option("--print", help="Print instead of writing.")] = False,
) -> None:
    """Write files for PM2, systemd or Compose."""
    from queue_worker import deploy

    settings = common.settings()
    files = deploy.render(kind, deploy.Place.here(settings.grace_seconds, settings.stop_timeout))
    if print_it:
        print("\n".join(f"# ---- {name}\n{text}" if len(files) > 1 else text for name, text in files.items()), end="")
        return
    taken = [name for name in files if Path(name).exists()]
    if taken and not force:
        names = " and ".join(filter(None, [", ".join(taken[:-1]), taken[-1]]))
        verb = "is" if len(taken) == 1 else "are"
        raise UsageError(f"{names} {verb} there already: --force writes over, --print shows")
    for name, text in files.items():
        Path(name).write_text(text, encoding="utf-8")
        print(f"{name} written")
    print(deploy.next_step(kind, files))
