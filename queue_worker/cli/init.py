"""`queue-worker init`: writes the file by which PM2, systemd or Docker Compose runs the worker."""

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
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    print_it: Annotated[bool, typer.Option("--print", help="Print the file instead of writing it.")] = False,
) -> None:
    """Write a file for PM2, systemd or Compose. It runs the worker from this folder."""
    from queue_worker import deploy

    settings = common.settings()
    text = deploy.render(kind, deploy.Place.here(settings.grace_seconds, settings.stop_timeout))
    if print_it:
        print(text, end="")
        return
    path = Path(deploy.FILES[kind])
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} is there already: --force writes over it, --print shows the new one") from None
    print(f"{path} written\n{deploy.NEXT[kind]}")
