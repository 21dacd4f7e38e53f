"""What a webhook of Stripe says about payments of ours: the signature is checked, then the event is only read.

Sources: https://docs.stripe.com/webhooks/signature, https://docs.stripe.com/api/events/types.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from queue_worker.errors import ConfigError, QueueWorkerError
from queue_worker.processors.payment_providers import Result
from queue_worker.processors.payment_stripe_results import (
    CAPTURE_KEY_FIELD,
    KEY_FIELD,
    intent_result,
    refund_result,
)

TOLERANCE_SECONDS = 300
"""Age of a signature above which it is refused, in seconds: Stripe's own default, against replays."""

_INTENTS = (
    "payment_intent.succeeded",
    "payment_intent.payment_failed",
    "payment_intent.canceled",
    "payment_intent.amount_capturable_updated",
)
_REFUNDS = ("refund.created", "refund.updated", "refund.failed", "charge.refund.updated")


class InvalidSignature(QueueWorkerError):
    """The webhook was not signed with our secret, or too long ago: answer 400 and believe nothing of it."""


class Settlement(NamedTuple):
    """A final outcome that an event reports; `key` as the provider sees it, `amount_minor` in minor currency units."""

    key: str
    state: Literal["succeeded", "failed"]
    provider_id: str | None
    error: str | None
    amount_minor: int
    currency: str


def read_event(body: bytes, signature: str, secret: str, *, tolerance: int = TOLERANCE_SECONDS) -> list[Settlement]:
    """Return the outcomes that a signed event reports; none for an event that is not about an outcome of ours.

    `body`: the request's body as it came; `signature`: its header Stripe-Signature; `tolerance`: greatest age of the
    signature in seconds. Raises InvalidSignature, whose text holds nothing of what was sent, and ConfigError.
    """
    try:
        import stripe
    except ImportError:
        raise ConfigError("webhooks of Stripe need the package stripe: pip install 'queue-worker[stripe]'") from None
    if not secret:
        raise ConfigError("QUEUE_WORKER_STRIPE_WEBHOOK_SECRET is not set: the endpoint's secret, whsec_...")
    try:
        event: Mapping[str, Any] = stripe.Webhook.construct_event(body, signature, secret, tolerance).to_dict()
    except stripe.SignatureVerificationError as error:
        reason = "too old" if "tolerance" in str(error) else "not made with our secret"
        raise InvalidSignature(f"the signature of the webhook is {reason}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidSignature("the webhook is not a signed event of Stripe") from None
    try:
        return _settlements(event)
    except (KeyError, TypeError, AttributeError, ValueError):
        return []  # signed, but of a shape that we do not know


def _settlements(event: Mapping[str, Any]) -> list[Settlement]:
    kind, thing = event.get("type"), event["data"]["object"]
    metadata = thing.get("metadata") or {}
    if kind in _REFUNDS:
        return _one(metadata.get(KEY_FIELD), refund_result(thing), thing["amount"], thing)
    if kind not in _INTENTS:
        return []
    found = _one(metadata.get(KEY_FIELD), intent_result(thing), thing["amount"], thing)
    if kind == "payment_intent.succeeded" and metadata.get(CAPTURE_KEY_FIELD):
        done = Result("succeeded", thing["id"])
        found += _one(metadata[CAPTURE_KEY_FIELD], done, thing["amount_received"], thing)
    return found


def _one(key: Any, result: Result, amount: int, thing: Mapping[str, Any]) -> list[Settlement]:
    if not isinstance(key, str) or not key or result.state == "pending":
        return []
    return [
        Settlement(key, result.state, result.provider_id, result.error, int(amount), str(thing["currency"]).upper())
    ]
