"""The question before something is destroyed."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from queue_worker.errors import UsageError

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def confirmed(command: str, what: str, yes: bool) -> bool:
    """Whether to delete `what` for good: `yes` says so, else a person at the terminal does.

    Raises UsageError where there is nobody to ask.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"{command} deletes {what} for good: say so with --yes")
    return typer.confirm(f"Delete {what} for good?", err=True)
