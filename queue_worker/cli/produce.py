"""`queue-worker send`: puts messages into a queue."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from queue_worker.cli import common
from queue_worker.cli.common import AsJson, QueueName
from queue_worker.cli.database import database
from queue_worker.cli.output import print_json
from queue_worker.cli.values import duration, instant, json_text, json_type, parse_json, queue_name
from queue_worker.errors import UsageError
from queue_worker.sending import UniqueMode, UniqueScope

_BATCH = 'an array such as [{"payload": {"id": 1}, "delay_seconds": 5}, ...]'


def register(app: typer.Typer) -> None:
    """Add the command."""
    common.command(app, "send")(send)


def send(
    queue: QueueName,
    payload: Annotated[
        str,
        typer.Argument(
            metavar="JSON|-|@FILE", help="The payload, - for standard input, @FILE for a file.", show_default=False
        ),
    ],
    delay: Annotated[str | None, typer.Option("--delay", metavar="TIME", help="Due after 10s, 5m, 1h, 2d.")] = None,
    at: Annotated[str | None, typer.Option("--run-at", "--at", metavar="ISO", help="Due at 2030-01-31T18:00Z.")] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", min=0, max=100, help="Higher first; 0 without it.")
    ] = None,
    unique_key: Annotated[
        str | None, typer.Option("--unique-key", metavar="KEY", help="Only one message with this key.")
    ] = None,
    unique_mode: Annotated[
        UniqueMode | None, typer.Option("--unique-mode", help="What a second one does to the first; keep without it.")
    ] = None,
    unique_scope: Annotated[
        UniqueScope | None, typer.Option("--unique-scope", help="How long the key is taken; waiting without it.")
    ] = None,
    unique_for: Annotated[
        str | None, typer.Option("--unique-for", metavar="TIME", help="The key stays taken for so long.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option("--group-key", "--group", metavar="KEY", help="In order within it, on an ordered queue."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="TIME|ISO", help="Not run after 10m, or 2030-01-31T18:00Z.")
    ] = None,
    headers: Annotated[
        list[str] | None, typer.Option("--header", metavar="NAME=VALUE", help="A header of your own; repeatable.")
    ] = None,
    batch: Annotated[bool, typer.Option("--batch", help=f"Send many: {_BATCH}")] = False,
    max_attempts: Annotated[
        int | None, typer.Option("--max-attempts", min=1, max=1000, help="Runs before it becomes a dead letter.")
    ] = None,
    retry_delay: Annotated[
        str | None, typer.Option("--retry-delay", metavar="TIME", help="Pause before each retry.")
    ] = None,
    timeout: Annotated[str | None, typer.Option("--timeout", metavar="TIME", help="Time limit of one run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send a message and print its id."""
    queue_name(queue)
    if delay is not None and at is not None:
        raise UsageError("give --delay or --run-at, not both")
    given: dict[str, Any] = {
        "delay_seconds": _duration(delay, "--delay"),
        "run_at": instant(at, "--run-at") if at is not None else None,
        "priority": priority,
        "unique_key": unique_key,
        "unique_mode": unique_mode,
        "unique_scope": unique_scope,
        "unique_seconds": _duration(unique_for, "--unique-for"),
        "group_key": group,
        "expires_at": _expiry(expires) if expires is not None else None,
        "max_attempts": max_attempts,
        "retry_delay_seconds": _duration(retry_delay, "--retry-delay"),
        "timeout_seconds": _duration(timeout, "--timeout"),
        "headers": _headers(headers) if headers else None,
    }
    options = {name: value for name, value in given.items() if value is not None}
    text, source = json_text(payload)
    value = parse_json(text, source)
    if batch:
        _send_batch(queue, _messages(value, options), as_json)
        return
    if not isinstance(value, dict):
        hint = "; --batch sends an array of messages" if isinstance(value, list) else ""
        raise UsageError(f'{source} must be a JSON object such as {{"id": 1}}, not {json_type(value)}{hint}')
    with database(common.settings()) as operator:
        sent = operator.value("send", queue=queue, payload=value, **options)
    if as_json:
        print_json({"queue": queue, "id": sent})
    else:
        print(sent)


def _duration(text: str | None, option: str) -> int | None:
    return None if text is None else duration(text, option)


def _expiry(text: str) -> datetime:
    """Return the moment of `--expires`: a time, or so long from now."""
    try:
        return datetime.now(UTC) + timedelta(seconds=duration(text, "--expires"))
    except UsageError:
        if "T" not in text and ":" not in text:
            raise
        return instant(text, "--expires")


def _headers(words: list[str]) -> dict[str, str]:
    """Return `NAME=VALUE` words as headers; values are texts."""
    found: dict[str, str] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise UsageError(f"--header {word!r:.40}: write NAME=VALUE")
        if name in found:
            raise UsageError(f"--header {name!r:.40} is given twice")
        found[name] = value
    return found


def _messages(value: Any, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of a batch; options of the command line stand behind those of a message."""
    if not isinstance(value, list):
        raise UsageError(f"--batch takes {_BATCH}, not {json_type(value)}")
    options = {name: item.isoformat() if isinstance(item, datetime) else item for name, item in options.items()}
    messages = []
    for number, one in enumerate(value):
        if not isinstance(one, dict) or "payload" not in one:
            what = "an object without payload" if isinstance(one, dict) else json_type(one)
            raise UsageError(f"messages[{number}] is {what}; --batch takes {_BATCH}")
        due = ("delay_seconds", "run_at") if "delay_seconds" in one or "run_at" in one else ()
        messages.append({**{name: item for name, item in options.items() if name not in due}, **one})
    return messages


def _send_batch(queue: str, messages: list[dict[str, Any]], as_json: bool) -> None:
    with database(common.settings()) as operator:
        if messages:
            rows = operator.call("send_batch", queue=queue, messages=messages)
        else:
            operator.queue(queue)
            rows = []
    ids = [next(iter(row.values())) for row in rows]
    if as_json:
        print_json({"queue": queue, "ids": ids})
    elif ids:
        print("\n".join(map(str, ids)))
