"""Commands that look: status of all queues, and show for one message."""

from __future__ import annotations

import sys
import threading
from datetime import datetime
from typing import Annotated, Any

import typer

from queue_worker.cli import common
from queue_worker.cli.common import AsJson, QueueName
from queue_worker.cli.database import Operator, database
from queue_worker.cli.failure import say
from queue_worker.cli.output import (
    first_line,
    moment,
    plain_table,
    print_fields,
    print_json,
    print_table,
    rich_table,
    span,
)
from queue_worker.cli.values import one_id, queue_name
from queue_worker.errors import TransportUnavailable, UsageError

_REFRESH = 2.0
_QUEUE_COLUMNS = ("queue", "waiting", "delayed", "running", "dead", "oldest", "paused")
_WORKER_COLUMNS = ("worker", "version", "queues", "busy", "slots", "alive", "last seen")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    common.command(app, "status")(status)
    common.command(app, "show")(show)


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every 2 seconds until Ctrl+C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show all queues and workers."""
    with database(common.settings()) as operator:
        if watch:
            _watch(operator, as_json)
        elif as_json:
            print_json(_look(operator))
        else:
            _print(_look(operator))


def _look(operator: Operator) -> dict[str, list[dict[str, Any]]]:
    return {"queues": operator.call("list_queues"), "workers": operator.call("list_workers")}


def _rows(found: dict[str, list[dict[str, Any]]]) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    queues = [
        (
            one["queue"],
            one["waiting"],
            one["delayed"],
            one["running"],
            one["dead"],
            span(one["oldest_seconds"]),
            " ".join(filter(None, (moment(one["paused_at"]), one["pause_reason"]))),
        )
        for one in found["queues"]
    ]
    workers = [
        (
            one["worker"],
            one["version"],
            one["queues"],
            one["busy"],
            one["slots"],
            "yes" if one["alive"] else "no",
            moment(one["last_seen"]),
        )
        for one in found["workers"]
    ]
    return queues, workers


def _print(found: dict[str, list[dict[str, Any]]]) -> None:
    queues, workers = _rows(found)
    if queues:
        print_table(_QUEUE_COLUMNS, queues)
    else:
        print("no queues; `queue-worker create NAME` makes one")
    print()
    if workers:
        print_table(_WORKER_COLUMNS, workers)
    else:
        print("no workers")


def _watch(operator: Operator, as_json: bool) -> None:
    """Show the state again and again; a database that went away is waited for."""
    try:
        if sys.stdout.isatty() and not as_json:
            _watch_live(operator)
        while True:
            try:
                found = _look(operator)
                if as_json:
                    print_json(found, indent=None)
                else:
                    queues, _ = _rows(found)
                    now = datetime.now().astimezone()
                    print("\n".join(plain_table(_QUEUE_COLUMNS, queues, moment(now))), flush=True)
            except TransportUnavailable as error:
                say(f"the database cannot be reached: {error}")
            threading.Event().wait(_REFRESH)
    except KeyboardInterrupt:
        return


def _watch_live(operator: Operator) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False, screen=True) as live:
        while True:
            stamp = moment(datetime.now().astimezone())
            try:
                queues, workers = _rows(_look(operator))
                live.update(
                    Group(
                        Text(f"{stamp}   every {_REFRESH:g} s, Ctrl+C ends"),
                        rich_table(_QUEUE_COLUMNS, queues),
                        rich_table(_WORKER_COLUMNS, workers),
                    ),
                    refresh=True,
                )
            except TransportUnavailable as error:
                live.update(Text(f"{stamp}   the database cannot be reached: {error}"), refresh=True)
            threading.Event().wait(_REFRESH)


def show(
    queue: QueueName,
    msg_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the message.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show one message wherever it is, with its failures."""
    queue_name(queue)
    number = one_id(msg_id)
    with database(common.settings()) as operator:
        rows = operator.call("message", queue=queue, msg_id=number)
        if not rows:
            operator.queue(queue)
            raise UsageError(
                f"queue {queue!r} has no message {number}: it never had, or it was deleted when it was done"
                " (ON_SUCCESS=delete, or the archive's days are over)"
            )
    if as_json:
        print_json([{"queue": queue, **row} for row in rows])
        return
    for row in rows:
        _print_message(queue, row)


def _print_message(queue: str, row: dict[str, Any]) -> None:
    failures = row.pop("failures") or []
    print_fields({name: value for name, value in {"queue": queue, **row}.items() if value is not None})
    if failures:
        print()
        print_table(
            ("attempt", "failed at", "kind", "retried at", "error"),
            [
                (
                    one["attempt"],
                    _moment(one["failed_at"]),
                    one["kind"],
                    _moment(one["retry_at"]),
                    first_line(one["error"]),
                )
                for one in failures
            ],
        )


def _moment(text: str | None) -> str:
    """Return a time that came inside JSON as people read it."""
    try:
        return moment(datetime.fromisoformat(text)) if text else ""
    except ValueError:
        return str(text)
