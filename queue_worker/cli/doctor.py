"""`queue-worker doctor`: what is wrong with the database and the queues, and what mends it."""

from __future__ import annotations

from typing import Annotated

import typer

from queue_worker.cli import common
from queue_worker.cli.common import AsJson
from queue_worker.cli.failure import FAILED
from queue_worker.cli.output import print_json
from queue_worker.log import escape


def register(app: typer.Typer) -> None:
    """Add the command."""
    common.command(app, "doctor")(doctor)


def doctor(
    security: Annotated[
        bool, typer.Option("--security", help="Look at rights: grants, row level security, exposed schemas.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Look for what is wrong with database and queues. The exit code is 1 if something is."""
    from queue_worker.doctor import examine
    from queue_worker.opening import open_database

    opened = open_database(common.settings(), look=True)
    try:
        about, findings = examine(opened, security=security)
    finally:
        opened.close()
    if as_json:
        print_json({"healthy": not findings, "about": about, "findings": [one._asdict() for one in findings]})
        return FAILED if findings else 0
    for name, value in about.items():
        print(escape(f"{name}: {value}"))
    if not findings:
        print("nothing is wrong")
    for one in findings:
        subject = f"{one.subject} {one.queue}" if one.queue else one.subject
        print(escape(f"{subject}: {one.finding}"))
        print(escape(f"    {one.fix}"))
    return FAILED if findings else 0
