"""Commands about schedules: schedule list, add, remove, run, pause, resume."""

from __future__ import annotations

from datetime import datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

from queue_worker.cli import common
from queue_worker.cli.common import AsJson, QueueName
from queue_worker.cli.database import Operator, database
from queue_worker.cli.output import first_line, print_json, print_table
from queue_worker.cli.values import duration, json_text, json_type, parse_json, queue_name
from queue_worker.errors import UsageError

if TYPE_CHECKING:
    from queue_worker.schedule_definition import Schedule

ScheduleName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the schedule.", show_default=False)]
_COLUMNS = ("name", "queue", "cron", "timezone", "misfire", "last_fire_at", "next_fire_at")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    del app
    group = common.group("schedule", "Send messages again and again, by cron or interval.")
    for name, function in (
        ("list", list_schedules),
        ("add", add),
        ("remove", remove),
        ("run", run),
        ("pause", pause),
        ("resume", resume),
    ):
        common.command(group, name)(function)


def list_schedules(as_json: AsJson = False) -> None:
    """List the schedules with their next times and errors."""
    with database(common.settings()) as operator:
        rows = operator.call("list_schedules")
    if as_json:
        print_json(rows)
    elif not rows:
        print("there are no schedules; `queue-worker schedule add` makes one")
    else:
        table = [(*(row[column] for column in _COLUMNS), _state(row)) for row in rows]
        print_table(("name", "queue", "cron", "timezone", "misfire", "last", "next", "state"), table)


def _state(row: dict[str, Any]) -> str:
    if row["error"]:
        return f"error: {first_line(row['error'])}"
    return "active" if row["enabled"] else "paused"


def add(
    name: ScheduleName,
    queue: QueueName,
    payload: Annotated[
        str, typer.Argument(metavar="[JSON]", help="The payload; - reads standard input, @FILE a file.")
    ] = "{}",
    cron: Annotated[
        str | None, typer.Option("--cron", metavar="LINE", help="Minute, hour, day, month, weekday: '0 9 * * 1-5'.")
    ] = None,
    every: Annotated[
        str | None, typer.Option("--every", metavar="TIME", help="Instead of --cron: 30s, 10m, 1h.")
    ] = None,
    timezone: Annotated[str, typer.Option("--timezone", metavar="ZONE", help="Such as Europe/Berlin.")] = "UTC",
    misfire: Annotated[
        str, typer.Option("--misfire", metavar="WHAT", help="Times missed while no worker ran: skip, once or all.")
    ] = "once",
    misfire_limit: Annotated[int, typer.Option("--misfire-limit", help="The most of them that all sends.")] = 100,
    priority: Annotated[int | None, typer.Option("--priority", help="Of its messages, 0 to 100.")] = None,
    unique_key: Annotated[
        str | None, typer.Option("--unique-key", metavar="KEY", help="Send none while one with this key waits.")
    ] = None,
    max_attempts: Annotated[int | None, typer.Option("--max-attempts", help="Of each of its messages.")] = None,
    retry_delay: Annotated[
        str | None, typer.Option("--retry-delay", metavar="TIME", help="Pause before each retry of them.")
    ] = None,
    timeout: Annotated[str | None, typer.Option("--timeout", metavar="TIME", help="Time limit of one run.")] = None,
    count: Annotated[int, typer.Option("--next", metavar="N", min=0, max=1000, help="Show the next N times.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a schedule, or change the one of this name."""
    queue_name(queue)
    options: dict[str, Any] = {
        "priority": priority,
        "unique_key": unique_key,
        "max_attempts": max_attempts,
        "retry_delay_seconds": duration(retry_delay, "--retry-delay") if retry_delay is not None else None,
        "timeout_seconds": duration(timeout, "--timeout") if timeout is not None else None,
    }
    options = {option: value for option, value in options.items() if value is not None}
    text = _text(cron, every)
    made = _checked(name, queue, text, _payload(payload), timezone, misfire, misfire_limit, options)
    with database(common.settings()) as operator:
        operator.queue(queue)
        operator.call("schedule", **made.arguments())
        times = _times(operator, made, count)
    if as_json:
        shown = {key: value for key, value in made.arguments().items() if key != "payload"}
        print_json({**shown, "next": [time.isoformat() for time in times]})
        return
    print(f"schedule {name!r} sends to queue {queue!r}: {made.cron} ({made.timezone})")
    for time in times:
        print(time.strftime("%a %Y-%m-%d %H:%M:%S %z"))


def _text(cron: str | None, every: str | None) -> str:
    if (cron is None) == (every is None):
        raise UsageError("give --cron '0 9 * * 1-5' or --every 10m, one of the two")
    if every is None:
        return str(cron)
    return f"every {duration(every, '--every')}s" if every.isalnum() and every.isascii() else f"every {every}"


def _checked(*fields: Any) -> Schedule:
    from queue_worker.schedule_definition import Schedule, check

    try:
        return check(Schedule(*fields))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _payload(argument: str) -> dict[str, Any]:
    text, source = json_text(argument)
    value = parse_json(text, source)
    if not isinstance(value, dict):
        raise UsageError(f'{source} must be a JSON object such as {{"id": 1}}, not {json_type(value)}')
    return value


def _times(operator: Operator, made: Schedule, count: int) -> list[datetime]:
    """Return the next `count` times after the database's clock, in the schedule's time zone."""
    if not count:
        return []
    from zoneinfo import ZoneInfo

    from queue_worker.schedule_times import rule_of

    row = _row(operator, made.name)
    rule = rule_of(made.cron, made.timezone, row["from_at"])
    clock = operator.call("due_schedules", max_count=0)[-1]["now"]
    found: list[datetime] = []
    while len(found) < count and (following := rule.after(found[-1] if found else clock)) is not None:
        found.append(following)
    return [time.astimezone(ZoneInfo(made.timezone)) for time in found]


def _row(operator: Operator, name: str) -> dict[str, Any]:
    """Return a schedule's row; raises UsageError where there is none."""
    rows = {row["name"]: row for row in operator.call("list_schedules")}
    if name in rows:
        return rows[name]
    near = get_close_matches(name, rows, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"schedule {name!r:.60} does not exist; {hint}schedules here: {', '.join(rows) or 'none'}")


def remove(name: ScheduleName, as_json: AsJson = False) -> None:
    """Remove a schedule; what it has sent stays."""
    with database(common.settings()) as operator:
        _row(operator, name)
        removed = operator.value("unschedule", name=name)
    if as_json:
        print_json({"name": name, "removed": removed})
    else:
        print(f"schedule {name!r} is removed")


def run(name: ScheduleName, as_json: AsJson = False) -> None:
    """Send the message of a schedule now. It comes beside its times; its id is printed."""
    with database(common.settings()) as operator:
        row = _row(operator, name)
        sent = operator.value("run_schedule", name=name)
    if as_json:
        print_json({"name": name, "queue": row["queue"], "id": sent})
    else:
        print(sent)


def pause(name: ScheduleName, as_json: AsJson = False) -> None:
    """Fire a schedule no more until it is resumed."""
    _enable(name, False, as_json)


def resume(name: ScheduleName, as_json: AsJson = False) -> None:
    """Fire a paused schedule again, from its next time on."""
    _enable(name, True, as_json)


def _enable(name: str, enabled: bool, as_json: bool) -> None:
    with database(common.settings()) as operator:
        _row(operator, name)
        operator.call("resume_schedule" if enabled else "pause_schedule", name=name)
    if as_json:
        print_json({"name": name, "enabled": enabled})
    elif enabled:
        print(f"schedule {name!r} is no longer paused")
    else:
        print(f"schedule {name!r} is paused; `queue-worker schedule resume {name}` ends that")
