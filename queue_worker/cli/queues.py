"""Commands about whole queues: create, pause, resume."""

from __future__ import annotations

from typing import Annotated

import typer

from queue_worker.cli import common
from queue_worker.cli.common import AsJson, QueueName
from queue_worker.cli.database import database
from queue_worker.cli.output import print_json
from queue_worker.cli.values import queue_name


def register(app: typer.Typer) -> None:
    """Add the commands."""
    common.command(app, "create")(create)
    common.command(app, "pause")(pause)
    common.command(app, "resume")(resume)


def create(
    queue: QueueName,
    ordered: Annotated[
        bool, typer.Option("--ordered", help="Messages with the same group key run one after the other.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a queue, if it is not there."""
    queue_name(queue)
    with database(common.settings()) as operator:
        operator.call("create_queue", queue=queue, **({"ordered": True} if ordered else {}))
    if as_json:
        print_json({"queue": queue, "ordered": ordered})
    else:
        print(f"queue {queue!r} is ready")


def pause(
    queue: QueueName,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; shown by status.")] = None,
    as_json: AsJson = False,
) -> None:
    """Stop claiming from a queue; sending stays possible."""
    with database(common.settings()) as operator:
        operator.queue(queue)
        operator.call("pause", queue=queue, reason=reason)
    if as_json:
        print_json({"queue": queue, "paused": True, "reason": reason})
    else:
        print(f"queue {queue!r} is paused; `queue-worker resume {queue}` ends that")


def resume(queue: QueueName, as_json: AsJson = False) -> None:
    """Claim from a paused queue again."""
    with database(common.settings()) as operator:
        operator.queue(queue)
        operator.call("resume", queue=queue)
    if as_json:
        print_json({"queue": queue, "paused": False})
    else:
        print(f"queue {queue!r} is no longer paused")
