"""`queue-worker doctor`: what is wrong with the database and the queues, and what mends it."""

from __future__ import annotations

import typer

from queue_worker.cli import common
from queue_worker.cli.common import AsJson
from queue_worker.cli.database import database
from queue_worker.cli.failure import FAILED
from queue_worker.cli.output import print_json
from queue_worker.log import escape


def register(app: typer.Typer) -> None:
    """Add the command."""
    common.command(app, "doctor")(doctor)


def doctor(as_json: AsJson = False) -> int:
    """Look for what is wrong with database and queues. The exit code is 1 if something is."""
    from queue_worker.doctor import examine

    with database(common.settings()) as operator:
        findings = examine(operator.transport)
    if as_json:
        print_json({"healthy": not findings, "findings": [one._asdict() for one in findings]})
    elif not findings:
        print("nothing is wrong")
    else:
        for one in findings:
            about = f"{one.subject} {one.queue}" if one.queue else one.subject
            print(escape(f"{about}: {one.finding}"))
            print(escape(f"    {one.fix}"))
    return FAILED if findings else 0
