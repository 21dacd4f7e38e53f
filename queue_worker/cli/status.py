"""Commands that look: status of all queues, and show for one message."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from queue_worker.cli import common, top
from queue_worker.cli.common import AsJson, QueueName
from queue_worker.cli.database import Operator, database
from queue_worker.cli.output import (
    first_line,
    moment,
    plain_table,
    print_fields,
    print_json,
    print_table,
    span,
)
from queue_worker.cli.values import one_id, queue_name
from queue_worker.errors import UsageError

_QUEUE_COLUMNS = ("queue", "waiting", "delayed", "running", "dead", "oldest", "paused", "limits")
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
            top.watch(operator, as_json, _look, _lines)
        elif as_json:
            print_json(_look(operator))
        else:
            _print(_look(operator))


def _look(operator: Operator) -> top.Found:
    lately = {one["queue"]: one for one in top.ask(operator, "overview", minutes=top.MINUTES)}
    return {
        "queues": [_with_history(one, lately.get(one["queue"], {})) for one in operator.call("list_queues")],
        "workers": operator.call("list_workers"),
        "progress": top.ask(operator, "list_progress"),
        "alerts": top.open_alerts(operator),
    }


def _with_history(queue: dict[str, Any], lately: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a queue with what ended lately: [minute in epoch seconds, done, retried, dead]."""
    figures = {"rate": lately.get("rate"), "error_rate": lately.get("error_rate")}
    return {**queue, **figures, "history": lately.get("history", [])}


def _shown(queues: list[tuple[Any, ...]]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the columns and rows to show: without the limits where no queue has any."""
    shown = len(_QUEUE_COLUMNS) if any(row[-1] for row in queues) else len(_QUEUE_COLUMNS) - 1
    return list(_QUEUE_COLUMNS[:shown]), [row[:shown] for row in queues]


def _limits(queue: dict[str, Any]) -> str:
    """Return the limits of a queue in words; an empty string where there are none."""
    words = []
    if queue["rate_count"] is not None:
        words.append(f"{queue['rate_count']} per {queue['rate_seconds']} s")
    if queue["fleet"] is not None:
        words.append(f"{queue['fleet']} at once")
    if queue["per_group"] is not None:
        words.append(f"{queue['per_group']} at once per group")
    if queue["ordered"]:
        words.append("ordered")
    return ", ".join(words)


def _rows(found: top.Found) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    queues = [
        (
            one["queue"],
            one["waiting"],
            one["delayed"],
            one["running"],
            one["dead"],
            span(one["oldest_seconds"]),
            top.paused(one),
            _limits(one),
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


def _print(found: top.Found) -> None:
    queues, workers = _rows(found)
    if queues:
        print_table(*_shown(queues))
    else:
        print("no queues; `queue-worker create NAME` makes one")
    print()
    if workers:
        print_table(_WORKER_COLUMNS, workers)
    else:
        print("no workers")
    if found["progress"]:
        print()
        print_table(top.PROGRESS_COLUMNS, top.progress_rows(found))
    if found["alerts"]:
        print()
        print_table(top.ALERT_COLUMNS, top.alert_rows(found), "alerts")


def _lines(found: top.Found) -> list[str]:
    """Return one look as plain lines, for who watches off a terminal."""
    queues, _ = _rows(found)
    lines = plain_table(*_shown(queues), moment(datetime.now().astimezone()))
    return [*lines, *plain_table(top.ALERT_COLUMNS, top.alert_rows(found))] if found["alerts"] else lines


def show(
    queue: QueueName,
    msg_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the message.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show one message, its failures and its result. It is found wherever it is."""
    queue_name(queue)
    number = one_id(msg_id)
    with database(common.settings()) as operator:
        rows = operator.call("message", queue=queue, msg_id=number)
        if not rows:
            operator.queue(queue)
            raise UsageError(
                f"queue {queue!r} has no message {number}: it never had, or it was deleted when it was done"
                " (ON_SUCCESS=delete, or the archive's days are over), or `retry` sent it again under a new id"
            )
        for row in rows:
            if row.get("has_result"):
                kept = operator.call("result", queue=queue, msg_id=number)
                row["result"] = kept[0]["value"] if kept else None
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
