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
from queue_worker.cli.failure import no_function, say
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
from queue_worker.errors import CallRefused, TransportUnavailable, UsageError

_REFRESH = 2.0
_QUEUE_COLUMNS = ("queue", "waiting", "delayed", "running", "dead", "oldest", "paused", "limits")
_PROGRESS_COLUMNS = ("queue", "msg_id", "done", "total", "note")
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
    return {
        "queues": operator.call("list_queues"),
        "workers": operator.call("list_workers"),
        "progress": _list_progress(operator),
    }


def _list_progress(operator: Operator) -> list[dict[str, Any]]:
    try:
        return operator.call("list_progress")
    except CallRefused as error:
        if no_function(error):
            return []
        raise


def _shown(queues: list[tuple[Any, ...]]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the columns and rows to show: without the limits where no queue has any."""
    shown = len(_QUEUE_COLUMNS) if any(row[-1] for row in queues) else len(_QUEUE_COLUMNS) - 1
    return list(_QUEUE_COLUMNS[:shown]), [row[:shown] for row in queues]


def _paused(queue: dict[str, Any]) -> str:
    """Return since when and why a queue is paused, by a person or by its breaker."""
    person = [moment(queue["paused_at"]), queue["pause_reason"]]
    until = queue["broken_until"]
    breaker = ["until", moment(until), queue["broken_reason"]] if until else []
    return " ".join(word for word in (*person, *breaker) if word)


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


def _rows(found: dict[str, list[dict[str, Any]]]) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    queues = [
        (
            one["queue"],
            one["waiting"],
            one["delayed"],
            one["running"],
            one["dead"],
            span(one["oldest_seconds"]),
            _paused(one),
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


def _print(found: dict[str, list[dict[str, Any]]]) -> None:
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
        print_table(_PROGRESS_COLUMNS, _progress(found))


def _progress(found: dict[str, list[dict[str, Any]]]) -> list[tuple[Any, ...]]:
    return [tuple(_whole(one.get(column)) for column in _PROGRESS_COLUMNS) for one in found["progress"]]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


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
                    print("\n".join(plain_table(*_shown(queues), moment(now))), flush=True)
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
                found = _look(operator)
                queues, workers = _rows(found)
                live.update(
                    Group(
                        Text(f"{stamp}   every {_REFRESH:g} s, Ctrl+C ends"),
                        rich_table(*_shown(queues)),
                        rich_table(_WORKER_COLUMNS, workers),
                        *([rich_table(_PROGRESS_COLUMNS, _progress(found))] if found["progress"] else []),
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
