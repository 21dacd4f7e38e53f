"""Webhooks as Stripe signs them: https://docs.stripe.com/webhooks/signature."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from typing import Any

SECRET = "whsec_" + "a" * 32


def sign(body: bytes, *, secret: str = SECRET, at: float | None = None) -> str:
    """Return the header Stripe-Signature for a body."""
    stamp = int(time.time() if at is None else at)
    digest = hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={stamp},v1={digest}"


def event(kind: str, thing: dict[str, Any]) -> bytes:
    """Return the body of an event about `thing`."""
    return json.dumps(
        {
            "id": "evt_1",
            "object": "event",
            "api_version": "2026-01-01",
            "created": int(time.time()),
            "type": kind,
            "data": {"object": thing},
            "livemode": False,
            "pending_webhooks": 1,
            "request": {"id": "req_1", "idempotency_key": None},
        }
    ).encode()


def intent(key: str | None, status: str = "succeeded", **more: Any) -> dict[str, Any]:
    """Return a PaymentIntent that was made with `key`."""
    metadata = {} if key is None else {"queue_worker_key": key}
    return {
        "id": "pi_9",
        "object": "payment_intent",
        "amount": 1250,
        "amount_received": 1250,
        "currency": "eur",
        "status": status,
        "metadata": metadata,
        "last_payment_error": None,
        **more,
    }


def refund(key: str, status: str = "succeeded", **more: Any) -> dict[str, Any]:
    """Return a Refund that was made with `key`."""
    return {
        "id": "re_9",
        "object": "refund",
        "amount": 300,
        "currency": "eur",
        "status": status,
        "metadata": {"queue_worker_key": key},
        **more,
    }
