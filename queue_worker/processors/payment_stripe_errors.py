"""What an error of Stripe says about the money: pure functions, see https://docs.stripe.com/api/errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from queue_worker.processors.http_answers import header, retry_after
from queue_worker.processors.payment_providers import (
    NotCharged,
    OutcomeUnknown,
    ProviderError,
    RequestRefused,
    Result,
    clean_reason,
)

ROW_PARAMS = ("amount", "amount_to_capture", "currency", "customer", "payment_method", "id")
"""Parameters whose values come from the user's row (`id`: the customer that was looked up)."""

REFUSALS = (
    "amount_too_large",
    "charge_already_captured",
    "charge_already_refunded",
    "charge_disputed",
    "charge_expired_for_capture",
    "charge_not_refundable",
    "payment_intent_unexpected_state",
    "refund_disputed_payment",
)
"""Codes that say for good that this capture or refund is not possible."""


def translate(error: Any) -> Result | ProviderError:
    """Return what a StripeError means: a failed Result when the payment itself was refused, else a ProviderError."""
    status: int | None = error.http_status
    if status is None:
        # No answer: the cause names a timeout or a lost connection without the address and the request.
        return OutcomeUnknown(f"no answer from Stripe: {type(error.__cause__ or error).__name__}")
    reused = _body(error).get("type") == "idempotency_error"
    text = f"Stripe answered {status}: {error.user_message or 'no text'}"
    if status == 402:
        return _declined(error)
    if status in (400, 404) and not reused:
        return _refused(error, text)
    wait = retry_after(header(error.headers, "Retry-After"))
    if status == 429:
        return NotCharged(text, retry_after=wait, down=True)
    if status in (401, 403):
        return NotCharged(f"{text}; check QUEUE_WORKER_STRIPE_API_KEY")
    # Stripe keeps its first answer to a key, a 500 included, and gives it again to every repeat. It refuses a key
    # that it saw with other parameters, for example before the customer's default card changed (400). A 409 means
    # that the same request is under way and will tell more later.
    replayed = (header(error.headers, "Idempotent-Replayed") or "").lower() == "true"
    return OutcomeUnknown(
        text, retry_after=wait, down=status == 503 and not replayed, stored=replayed or (reused and status != 409)
    )


def _declined(error: Any) -> Result:
    # Final for this key, whatever the code: Stripe gives the same 402 again to every repeat.
    body = _body(error)
    intent = body.get("payment_intent")
    intent_id = intent.get("id") if isinstance(intent, Mapping) else None
    code = body.get("decline_code") or body.get("code") or "declined"
    reason = clean_reason(f"{code}: {error.user_message or 'declined'}")
    return Result("failed", intent_id or body.get("charge"), reason)


def _refused(error: Any, text: str) -> Result | ProviderError:
    body = _body(error)
    message = str(error.user_message or "")
    if "mode key was used" in message:
        # "a similar object exists in live mode, but a test mode key was used": our key is wrong, not the payment.
        return NotCharged(f"{text}; check QUEUE_WORKER_STRIPE_API_KEY")
    if body.get("code") == "balance_insufficient":
        return NotCharged(text)  # of our own account, for a refund: it fills up again
    if body.get("param") in ROW_PARAMS or body.get("code") in REFUSALS:
        return Result("failed", None, clean_reason(f"{body.get('code') or 'invalid_request'}: {message}"))
    return RequestRefused(text)


def _body(error: Any) -> Mapping[str, Any]:
    body = error.json_body
    inner = body.get("error") if isinstance(body, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}
