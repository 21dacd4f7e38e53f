"""`queue-worker status --watch`: the state again and again, on a terminal as a screen that refreshes in place.

The screen asks for `overview`, which costs the same however many messages wait; a `~` marks its estimates.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any, NoReturn

from queue_worker.cli.database import Operator
from queue_worker.cli.failure import no_function, say
from queue_worker.cli.output import moment, print_json, rich_table, span
from queue_worker.errors import CallRefused, TransportUnavailable

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

Found = dict[str, list[dict[str, Any]]]

REFRESH = 2.0
"""Pause between two looks in seconds."""

MINUTES = 30
"""Minutes of history: one sign each."""

ALERT_COLUMNS = ("since", "alert", "queue", "detail")
PROGRESS_COLUMNS = ("queue", "msg_id", "done", "total", "note")
_QUEUE_COLUMNS = ("queue", "waiting", "delayed", "running", "dead", "oldest", "per min", "failed")
_WORKER_COLUMNS = ("worker", "version", "queues", "busy", "alive", "last seen")
_MOST_ALERTS = 8
_BAR = 10
_BLOCKS = "▁▂▃▄▅▆▇█"
_PLAIN_BLOCKS = ".:-=+*%#"


def watch(
    operator: Operator, as_json: bool, look: Callable[[Operator], Found], lines: Callable[[Found], Sequence[str]]
) -> None:
    """Show the state until Ctrl+C; a database that went away is waited for.

    Off a terminal `look` finds what is printed, one JSON document a line or the `lines` of it.
    """
    try:
        if sys.stdout.isatty() and not as_json:
            _live(operator)
        while True:
            try:
                found = look(operator)
                if as_json:
                    print_json(found, indent=None)
                else:
                    print("\n".join(lines(found)), flush=True)
            except TransportUnavailable as error:
                say(f"the database cannot be reached: {error}")
            threading.Event().wait(REFRESH)
    except KeyboardInterrupt:
        return


def ask(operator: Operator, function: str, **params: Any) -> list[dict[str, Any]]:
    """Call a function that an older schema may not have; no rows then."""
    try:
        return operator.call(function, **params)
    except CallRefused as error:
        if no_function(error):
            return []
        raise


def open_alerts(operator: Operator) -> list[dict[str, Any]]:
    """Return the alerts that are open, newest first."""
    return [one for one in ask(operator, "list_alerts", max_count=100) if one["cleared_at"] is None]


def alert_rows(found: Found) -> list[tuple[Any, ...]]:
    """Return the rows below `ALERT_COLUMNS`."""
    return [(moment(one["fired_at"]), one["name"].replace("_", " "), one["queue"], one["detail"])
            for one in found["alerts"]]  # fmt: skip


def progress_rows(found: Found) -> list[tuple[Any, ...]]:
    """Return the rows below `PROGRESS_COLUMNS`."""
    return [tuple(_whole(one.get(column)) for column in PROGRESS_COLUMNS) for one in found["progress"]]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def sparkline(history: Sequence[Sequence[int]], now: float, minutes: int, blocks: str) -> list[tuple[str, bool]]:
    """Return a sign and whether something failed for each of the last `minutes`, the running one last.

    `history` is that of SQL `overview`: [minute, done, retried, dead]; the highest minute is a full block.
    """
    runs = {int(minute): (sum(counts), sum(counts[1:]) > 0) for minute, *counts in history}
    last = int(now) // 60 * 60
    shown = [runs.get(last - 60 * back, (0, False)) for back in range(minutes - 1, -1, -1)]
    most = max(count for count, _ in shown)
    return [(blocks[-(-count * len(blocks) // most) - 1] if count else " ", failed) for count, failed in shown]


def bar(busy: int, slots: int, full: str, empty: str) -> str:
    """Return how many of a worker's slots are busy, as a bar and in figures."""
    filled = min(_BAR, -(-busy * _BAR // slots)) if slots else 0
    return f"{full * filled}{empty * (_BAR - filled)} {busy}/{slots}"


def _blocks_shown() -> bool:
    """Whether the terminal's character set has the block characters."""
    try:
        (_BLOCKS + "·").encode(sys.stdout.encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True


def _live(operator: Operator) -> NoReturn:
    from rich.live import Live
    from rich.text import Text

    blocks = _blocks_shown()
    with Live(auto_refresh=False, screen=True) as live:
        while True:
            stamp = moment(datetime.now().astimezone())
            try:
                live.update(_screen(_look(operator), stamp, blocks), refresh=True)
            except TransportUnavailable as error:
                live.update(Text(f"{stamp}   the database cannot be reached: {error}"), refresh=True)
            threading.Event().wait(REFRESH)


def _look(operator: Operator) -> Found:
    return {
        "queues": operator.call("overview", minutes=MINUTES),
        "workers": operator.call("list_workers"),
        "progress": ask(operator, "list_progress"),
        "alerts": open_alerts(operator),
    }


def _screen(found: Found, stamp: str, blocks: bool) -> Group:
    from rich.console import Group
    from rich.text import Text

    queues, workers, alerts = found["queues"], found["workers"], found["alerts"]
    alive = sum(one["alive"] for one in workers)
    counts = [f"queues {len(queues)}", f"workers {alive}", f"alerts {len(alerts)}", f"every {REFRESH:g} s, Ctrl+C ends"]
    parts: list[Any] = [Text(f"{stamp}   {'   '.join(counts)}")]
    if alerts:
        parts.append(rich_table(ALERT_COLUMNS, alert_rows(found)[:_MOST_ALERTS], "alerts"))
    room = shutil.get_terminal_size().lines - 14 - 3 * bool(alerts) - min(len(alerts), _MOST_ALERTS) - len(workers)
    shown = _busiest(queues, max(room, 3))
    minutes = max(10, min(MINUTES, shutil.get_terminal_size().columns - 90))
    columns = [*_QUEUE_COLUMNS, f"last {minutes} min", *(["paused"] if any(map(paused, shown)) else [])]
    signs = _BLOCKS if blocks else _PLAIN_BLOCKS
    parts.append(rich_table(columns, [_queue_row(one, minutes, signs)[: len(columns)] for one in shown]))
    if len(shown) < len(queues):
        parts.append(Text(f"and {len(queues) - len(shown)} queues with less to do: `queue-worker status` shows all"))
    parts.append(rich_table(_WORKER_COLUMNS, [_worker_row(one, blocks) for one in workers]))
    if found["progress"]:
        parts.append(rich_table(PROGRESS_COLUMNS, progress_rows(found)))
    return Group(*parts)


def _busiest(queues: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Return as many queues as there is room for, those with most to do, in their order."""

    def busy(one: dict[str, Any]) -> tuple[Any, ...]:
        # Nothing is known of the messages of a queue that belongs to another role.
        running, waiting, delayed = (one[state] or 0 for state in ("running", "waiting", "delayed"))
        return (running + waiting, one["rate"], one["dead"], delayed)

    kept = {one["queue"] for one in sorted(queues, key=busy, reverse=True)[:most]}
    return [one for one in queues if one["queue"] in kept]


def _queue_row(one: dict[str, Any], minutes: int, signs: str) -> tuple[Any, ...]:
    failed = one["error_rate"]
    return (
        one["queue"],
        f"~{one['waiting']}" if one["capped"] else one["waiting"],
        one["delayed"],
        one["running"],
        one["dead"],
        span(one["oldest_seconds"]),
        f"{one['rate']:.1f}" if one["rate"] < 100 else f"{one['rate']:.0f}",
        "" if failed is None else f"{100 * failed:.0f} %",
        _plot(sparkline(one["history"], time.time(), minutes, signs)),
        paused(one),
    )


def _plot(signs: list[tuple[str, bool]]) -> Text:
    from rich.text import Text

    runs = groupby(signs, key=lambda one: one[1])
    return Text.assemble(
        *(("".join(sign for sign, _ in run), "red" if failed else "green") for failed, run in runs), no_wrap=True
    )


def _worker_row(one: dict[str, Any], blocks: bool) -> tuple[Any, ...]:
    drawn = bar(one["busy"], one["slots"], *(("█", "·") if blocks else ("#", ".")))
    alive = "yes" if one["alive"] else "no"
    return (one["worker"], one["version"], one["queues"], drawn, alive, moment(one["last_seen"]))


def paused(queue: dict[str, Any]) -> str:
    """Return since when and why a queue is paused, by a person or by its breaker."""
    person = [moment(queue["paused_at"]), queue["pause_reason"]]
    until = queue["broken_until"]
    breaker = ["until", moment(until), queue["broken_reason"]] if until else []
    return " ".join(word for word in (*person, *breaker) if word)
