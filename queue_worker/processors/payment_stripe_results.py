"""What objects of Stripe say about the money: pure functions, for the provider's calls and for webhooks alike.

Source: https://docs.stripe.com/payments/paymentintents/lifecycle, /refunds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from queue_worker.processors.payment_providers import Result, clean_reason

KEY_FIELD = "queue_worker_key"
"""Name in the metadata of a PaymentIntent or Refund under which the idempotency key is found again."""

CAPTURE_KEY_FIELD = "queue_worker_capture_key"
"""The same for the capture of a PaymentIntent, which already has the key of its authorization."""


def stripe_key(key: str) -> str:
    """Return the idempotency key for `key`: itself, or a digest where it is too long or not plain ASCII.

    Stripe takes at most 255 characters, and an HTTP header visible ASCII (RFC 9110 section 5.5). SQL
    `queue_worker_data.provider_key` has the same rule.
    """
    if re.fullmatch(r"[!-~]{1,255}", key):
        return key
    return "sha256_" + hashlib.sha256(key.encode()).hexdigest()


def intent_result(intent: Mapping[str, Any]) -> Result:
    """Return what became of the charge or authorization that made a PaymentIntent."""
    status, intent_id = intent["status"], intent["id"]
    # Only an authorization makes one that waits for a capture.
    if status in ("succeeded", "requires_capture"):
        return Result("succeeded", intent_id)
    if status in ("requires_payment_method", "canceled"):
        refusal = intent.get("last_payment_error") or {}
        code = refusal.get("decline_code") or refusal.get("code") or status
        return Result("failed", intent_id, clean_reason(f"{code}: {refusal.get('message') or 'declined'}"))
    return Result("pending", intent_id, f"the PaymentIntent is {clean_reason(str(status))}")


def capture_result(intent: Mapping[str, Any], key: str) -> Result | None:
    """Return what became of the capture with `key` of a PaymentIntent; None: it has not been captured."""
    status, intent_id = intent["status"], intent["id"]
    if status == "succeeded":
        if (intent.get("metadata") or {}).get(CAPTURE_KEY_FIELD) == stripe_key(key):
            return Result("succeeded", intent_id)
        return Result("failed", intent_id, "already_captured: the payment was captured otherwise")
    if status == "canceled":
        return Result("failed", intent_id, "canceled: the authorization was cancelled or has expired")
    if status == "processing":
        return Result("pending", intent_id, "the PaymentIntent is processing")
    return None


def refund_result(refund: Mapping[str, Any]) -> Result:
    """Return what became of a refund."""
    status, refund_id = refund.get("status"), refund["id"]
    if status == "succeeded":
        return Result("succeeded", refund_id)
    if status in ("failed", "canceled"):
        return Result("failed", refund_id, clean_reason(str(refund.get("failure_reason") or status)))
    return Result("pending", refund_id, f"the refund is {clean_reason(str(status))}")
