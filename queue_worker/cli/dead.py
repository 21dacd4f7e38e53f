"""Commands about dead letters: dead list, dead show, dead edit, retry, clear."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from queue_worker.cli import common
from queue_worker.cli.application import load_app
from queue_worker.cli.common import AsJson, QueueName
from queue_worker.cli.confirm import Yes, confirmed
from queue_worker.cli.database import Operator, database
from queue_worker.cli.editor import edited
from queue_worker.cli.output import first_line, print_fields, print_json, print_table
from queue_worker.cli.values import ids, json_text, json_type, one_id, parse_json
from queue_worker.config import Settings
from queue_worker.errors import ConfigError, UsageError
from queue_worker.transport import BigInts

DeadId = Annotated[str, typer.Argument(metavar="DEAD_ID", help="Its dead_id.", show_default=False)]

_CHUNK = 1000
_UNLESS = ", unless its decorator says otherwise: set QUEUE_WORKER_APP to see that"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = common.group("dead", "Look at dead letters: messages that were given up.")
    common.command(group, "list")(list_dead)
    common.command(group, "show")(show_dead)
    common.command(group, "edit")(edit_dead)
    common.command(app, "retry")(retry)
    common.command(app, "clear")(clear)


def list_dead(
    queue: QueueName,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="Show so many, newest first.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List the dead letters of a queue, newest first."""
    with database(common.settings()) as operator:
        state = operator.queue(queue)
        rows = operator.call("list_dead", queue=queue, max_count=limit)
    if as_json:
        print_json(rows)
        return
    if not rows:
        print(f"queue {queue!r} has no dead letters")
        return
    columns = ("dead_id", "msg_id", "attempts", "reason", "dead_at")
    print_table((*columns, "error"), [(*(row[column] for column in columns), first_line(row["error"])) for row in rows])
    if (state["dead"] or 0) > len(rows):
        print(f"{len(rows)} of {state['dead']}; --limit shows more")


def show_dead(
    queue: QueueName,
    dead_id: DeadId,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter with its payload and its error."""
    number = one_id(dead_id)
    with database(common.settings()) as operator:
        [row] = _named(operator, queue, [number])
    if as_json:
        print_json(row)
    else:
        print_fields({name: value for name, value in row.items() if value is not None})


def edit_dead(
    queue: QueueName,
    dead_id: DeadId,
    payload: Annotated[
        str | None,
        typer.Argument(
            metavar="[JSON|-|@FILE]",
            help="Its new payload; - reads it from standard input (default: opens $EDITOR).",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replace the payload of a dead letter; `retry` then sends it."""
    number = one_id(dead_id)
    if payload is None and not sys.stdin.isatty():
        raise UsageError("give the new payload: JSON, - for standard input, or @FILE")
    value = None if payload is None else parse_json(*json_text(payload))
    with database(common.settings()) as operator:
        [row] = _named(operator, queue, [number])
        if value is None:
            value = edited(row["payload"])
        changed = value != row["payload"]
        if not isinstance(value, dict):
            raise UsageError(f"a payload is a JSON object, not {json_type(value)}")
        if changed and not operator.value("edit_dead", queue=queue, dead_id=number, payload=value):
            raise UsageError(f"dead letter {number} of queue {queue!r} was sent again or deleted meanwhile")
    if as_json:
        print_json({"queue": queue, "dead_id": number, "changed": changed})
    elif changed:
        print(f"dead letter {number} changed; `queue-worker retry {queue} {number}` sends it")
    else:
        print("nothing changed")


def _named(operator: Operator, queue: str, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Return the dead letters with these ids; raises UsageError where one is not there."""
    operator.queue(queue)
    rows = operator.call("list_dead", queue=queue, dead_ids=BigInts(numbers), max_count=len(numbers))
    missing = sorted(set(numbers) - {row["dead_id"] for row in rows})
    if missing:
        raise UsageError(
            f"queue {queue!r} has no dead letter {', '.join(map(str, missing[:10]))};"
            f" `queue-worker dead list {queue}` shows those it has"
        )
    return rows


def retry(
    queue: QueueName,
    dead_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DEAD_ID]...", help="Which (default: all of the queue).", show_default=False),
    ] = None,
    first: Annotated[
        int | None, typer.Option("--first", metavar="N", min=1, help="Only the oldest N.", show_default=False)
    ] = None,
    per_second: Annotated[
        float | None,
        typer.Option("--per-second", metavar="R", help="Spread them, so many a second.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send dead letters again, with all their attempts anew."""
    settings = common.settings()
    numbers = ids(dead_ids or [])
    if numbers and first is not None:
        raise UsageError("give ids or --first, not both")
    with database(settings) as operator:
        if numbers:
            _named(operator, queue, numbers)
        else:
            operator.queue(queue)
        count = _redrive(operator, queue, numbers, first, per_second)
    attempts, delays, known = _policy(settings, queue)
    if as_json:
        print_json({"queue": queue, "retried": count, "max_attempts": attempts, "delays": delays})
    elif count == 0:
        print(f"queue {queue!r} has no dead letters")
    else:
        from queue_worker.log_events import series_text

        letters = "1 dead letter" if count == 1 else f"{count} dead letters"
        runs = "1 attempt" if attempts == 1 else f"up to {attempts} attempts"
        print(f"{letters} of queue {queue!r} sent again: {runs} each, {series_text(delays)}{'' if known else _UNLESS}")


def _redrive(
    operator: Operator, queue: str, numbers: Sequence[int], first: int | None, per_second: float | None
) -> int:
    """Send dead letters again (no numbers: all, or the first so many), in calls short enough for any statement timeout.

    Returns how many.
    """
    most = len(numbers) or first
    options: dict[str, Any] = {"dead_ids": BigInts(numbers)} if numbers else {}
    if per_second is not None:
        options["per_second"] = per_second
    total = 0
    while most is None or total < most:
        step = _CHUNK if most is None else min(_CHUNK, most - total)
        count = int(operator.value("redrive", queue=queue, max_count=step, **options))
        if count == 0:
            break
        total += count
    return total


def _policy(settings: Settings, queue: str) -> tuple[int, list[float] | None, bool]:
    """Return the attempts and delays of a queue, by the settings and the app that this command sees.

    And whether its processor was seen. The delays are None where a callable decides.
    """
    from queue_worker.retry import RetryPolicy

    try:
        processor = load_app(settings.app).processors.get(queue)
    except ConfigError:
        # The app may live on the worker's machine only.
        processor = None
    options = settings.options_for(queue, processor.options if processor else {})
    return options.max_attempts, RetryPolicy.from_options(options).series(), processor is not None


def clear(queue: QueueName, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete the dead letters of a queue for good."""
    gone = None
    with database(common.settings()) as operator:
        count = operator.queue(queue)["dead"] or 0
        letters = "1 dead letter" if count == 1 else f"{count} dead letters"
        if count and confirmed("clear", f"{letters} of queue {queue!r}", yes):
            gone = int(operator.value("discard", queue=queue))
    if as_json:
        print_json({"queue": queue, "deleted": gone or 0})
    elif count == 0:
        print(f"queue {queue!r} has no dead letters")
    else:
        print("nothing deleted" if gone is None else f"{gone} deleted from queue {queue!r}")
