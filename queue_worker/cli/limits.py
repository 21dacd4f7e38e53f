"""`queue-worker limit`: what all workers together may do with a queue."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from queue_worker.cli import common
from queue_worker.cli.common import AsJson, QueueName
from queue_worker.cli.database import database
from queue_worker.cli.output import print_json
from queue_worker.errors import UsageError

_NONE = "none"
_RATE = re.compile(r"(\d{1,7})/(?:(\d{1,5})?(s|m|h))")
_UNITS = {"s": 1, "m": 60, "h": 3600}


def register(app: typer.Typer) -> None:
    """Add the command."""
    common.command(app, "limit")(limit)


def limit(
    queue: QueueName,
    rate: Annotated[
        str | None, typer.Option("--rate", metavar="N/TIME", help="Starts at most: 100/s, 20/m, 500/h, 3/10s, or none.")
    ] = None,
    fleet: Annotated[
        str | None, typer.Option("--fleet", metavar="N", help="Messages that run at a time, in all workers; or none.")
    ] = None,
    per_group: Annotated[
        str | None,
        typer.Option("--per-group", metavar="N", help="Of an ordered queue: messages of one group at a time; or none."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show or set limits of all workers together. Without an option it shows them."""
    count, seconds = _rate(rate) if rate is not None else (None, None)
    numbers = {"fleet": _number(fleet, "--fleet"), "per_group": _number(per_group, "--per-group")}
    with database(common.settings()) as operator:
        operator.queue(queue)
        if rate is not None:
            operator.call("set_rate_limit", queue=queue, count=count, per_seconds=seconds)
        if fleet is not None or per_group is not None:
            [now] = operator.call("limits", queue=queue)
            kept = {name: now[name] for name, given in (("fleet", fleet), ("per_group", per_group)) if given is None}
            operator.call("set_concurrency", queue=queue, **{**numbers, **kept})
        [found] = operator.call("limits", queue=queue)
    if as_json:
        print_json({"queue": queue, **found})
    else:
        print(f"queue {queue!r}: {_words(found)}")


def _words(found: dict[str, Any]) -> str:
    parts = []
    if found["rate_count"] is not None:
        parts.append(f"at most {found['rate_count']} starts in {found['rate_seconds']} s")
    if found["fleet"] is not None:
        parts.append(f"at most {found['fleet']} at a time in all workers")
    if found["ordered"]:
        parts.append(f"groups in order, {found['per_group'] or 1} of a group at a time")
    return "; ".join(parts) or "no limits"


def _rate(text: str) -> tuple[int | None, int | None]:
    if text == _NONE:
        return None, None
    parts = _RATE.fullmatch(text)
    if parts is None:
        raise UsageError(f"--rate {text!r:.40}: write 100/s, 20/m, 500/h, 3/10s, or none")
    return int(parts[1]), int(parts[2] or 1) * _UNITS[parts[3]]


def _number(text: str | None, option: str) -> int | None:
    if text is None or text == _NONE:
        return None
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise UsageError(f"{option} {text!r:.40}: write a whole number from 1, or none")
    return int(text)
