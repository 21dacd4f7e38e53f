"""Unexpected errors of handlers for Sentry, where the program has set it up: with queue, id and attempt, no payload.

Nothing is imported or sent by ourselves: `sentry_sdk.init(...)` in the app's module is what turns it on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from queue_worker.errors import InvalidPayload, LeaseLost, Steering, TransportUnavailable
from queue_worker.message import Message
from queue_worker.redaction import MASK, redact

_EXPECTED = (Steering, InvalidPayload, LeaseLost, TransportUnavailable)
"""What a handler raises on purpose, what is the sender's mistake, and what is nobody's."""

_LOGGER = "queue_worker.log_events"
_TEXT = 1000
_SHORTEST = 4
"""Values of a payload that are shorter are not looked for: they are in every text."""

_watched: set[int] = set()


def capture(message: Message, error: BaseException) -> None:
    """Send an error of the handler of `message` to Sentry, if the program uses it; never raises."""
    sdk: Any = sys.modules.get("sentry_sdk")
    if sdk is None:
        return
    try:
        if sdk.is_initialized():
            _watch_own_lines(sdk)
            if not isinstance(error, _EXPECTED):
                _capture(sdk, message, error)
    except Exception:
        # A report that cannot be made must not change what becomes of the message.
        return


def _capture(sdk: Any, message: Message, error: BaseException) -> None:
    from sentry_sdk.utils import event_from_exception

    options = sdk.get_client().options
    event, hint = event_from_exception(
        error,
        # The payload stands in the local variables of nearly every frame.
        client_options={**options, "include_local_variables": False},
        mechanism={"type": "queue_worker", "handled": True},
    )
    for one in event.get("exception", {}).get("values", ()):
        one["value"] = _text(str(one.get("value") or ""), message.body)
    with sdk.isolation_scope() as scope:
        scope.clear_breadcrumbs()
        scope.set_tag("queue", message.queue)
        scope.set_tag("msg_id", str(message.receipt.msg_id))
        scope.set_tag("attempt", message.attempt)
        scope.set_transaction_name(f"queue {message.queue}")
        sdk.capture_event(event, hint)


def _text(text: str, body: str | bytes | None) -> str:
    """Return the first line of an error's text, without secrets and values of the payload."""
    # What pydantic and Postgres quote of a value stands in the lines below.
    first = redact(text.partition("\n")[0])[:_TEXT]
    try:
        payload = json.loads(body or "null")
    except ValueError:
        return first
    found = {form for value in _values(payload) for form in (value, repr(value)[1:-1]) if form in first}
    for value in sorted(found, key=len, reverse=True):
        first = first.replace(value, MASK)
    return first


def _values(payload: Any) -> Iterator[str]:
    """Yield what stands in a payload, as text; the names of its fields are none of it."""
    todo = [payload]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            todo.extend(one.values())
        elif isinstance(one, list):
            todo.extend(one)
        elif not isinstance(one, bool) and one is not None and len(str(one)) >= _SHORTEST:
            yield str(one)


def _watch_own_lines(sdk: Any) -> None:
    """Let Sentry's integration of loguru send no event for what `capture` has sent, or what is no error."""
    scope = sdk.get_global_scope()
    if id(scope) not in _watched:
        _watched.add(id(scope))
        scope.add_event_processor(_own_line)


def _own_line(event: dict[str, Any], hint: dict[str, Any]) -> dict[str, Any] | None:
    if event.get("logger") != _LOGGER:
        return event
    fields = (event.get("extra") or {}).get("extra") or {}
    # A message whose process died too often has no error that could have been captured.
    if fields.get("event") == "message.dead" and fields.get("reason") != "lost":
        return None
    # Lines of other messages, and the local variables of the loop, in which payloads stand.
    event.pop("breadcrumbs", None)
    event.pop("threads", None)
    return event
