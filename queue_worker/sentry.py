"""Unexpected errors of handlers for Sentry, where the program has set it up: with queue, id and attempt, no payload.

Nothing is imported or sent by ourselves: `sentry_sdk.init(...)` in the app's module is what turns it on.
"""

from __future__ import annotations

import sys
from typing import Any

from queue_worker.errors import InvalidPayload, LeaseLost, Steering, TransportUnavailable
from queue_worker.message import Message
from queue_worker.redaction import redact

_EXPECTED = (Steering, InvalidPayload, LeaseLost, TransportUnavailable)
"""What a handler raises on purpose, what is the sender's mistake, and what is nobody's."""


def capture(message: Message, error: BaseException) -> None:
    """Send an error of the handler of `message` to Sentry, if the program uses it; never raises."""
    sdk: Any = sys.modules.get("sentry_sdk")
    if sdk is None or isinstance(error, _EXPECTED):
        return
    try:
        if sdk.is_initialized():
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
        one["value"] = redact(str(one.get("value") or ""))
    with sdk.isolation_scope() as scope:
        scope.clear_breadcrumbs()
        scope.set_tag("queue", message.queue)
        scope.set_tag("msg_id", str(message.receipt.msg_id))
        scope.set_tag("attempt", message.attempt)
        scope.set_transaction_name(f"queue {message.queue}")
        sdk.capture_event(event, hint)
