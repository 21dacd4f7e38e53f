"""What Stripe's errors mean for the money, and what of their text may be kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import stripe

from queue_worker.processors.payment_providers import (
    NotCharged,
    OutcomeUnknown,
    ProviderError,
    RequestRefused,
    Result,
    clean_reason,
)
from queue_worker.processors.payment_stripe import stripe_key
from queue_worker.processors.payment_stripe_errors import retry_after, translate


def stripe_error(status: int | None, headers: dict[str, str] | None = None, **details: Any) -> stripe.StripeError:
    return stripe.StripeError(
        details.get("message"), http_status=status, headers=headers, json_body={"error": details} if details else None
    )


@pytest.mark.parametrize(
    ("status", "details", "kind"),
    [
        (None, {}, OutcomeUnknown),
        (200, {}, OutcomeUnknown),
        (409, {"type": "idempotency_error"}, OutcomeUnknown),
        (409, {"type": "invalid_request_error", "code": "idempotency_key_in_use"}, OutcomeUnknown),
        (500, {}, OutcomeUnknown),
        (502, {}, OutcomeUnknown),
        (429, {"code": "lock_timeout"}, NotCharged),
        (401, {}, NotCharged),
        (403, {}, NotCharged),
        (400, {"param": "api_version"}, RequestRefused),
        (404, {}, RequestRefused),
        (400, {"param": "amount"}, Result),
        (404, {"param": "payment_method", "code": "resource_missing"}, Result),
        (402, {"code": "card_declined"}, Result),
        (402, {}, Result),
    ],
)
def test_each_status_has_one_meaning(status: int | None, details: dict[str, Any], kind: type) -> None:
    meaning = translate(stripe_error(status, **details))
    assert type(meaning) is kind
    if isinstance(meaning, Result):
        assert meaning.state == "failed"


def test_a_decline_carries_the_reason_and_the_payment() -> None:
    error = stripe_error(
        402,
        code="card_declined",
        decline_code="insufficient_funds",
        message="Your card has insufficient funds.",
        payment_intent={"id": "pi_1"},
    )
    assert translate(error) == Result("failed", "pi_1", "insufficient_funds: Your card has insufficient funds.")


@pytest.mark.parametrize(
    ("status", "headers", "details", "stored"),
    [
        (500, {"idempotent-replayed": "true"}, {}, True),
        (500, {}, {}, False),
        (400, {}, {"type": "idempotency_error"}, True),
        (409, {}, {"type": "idempotency_error"}, False),
    ],
)
def test_a_stored_answer_is_recognised(
    status: int, headers: dict[str, str], details: dict[str, Any], stored: bool
) -> None:
    meaning = translate(stripe_error(status, headers, **details))
    assert isinstance(meaning, OutcomeUnknown)
    assert meaning.stored is stored


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("", None), (None, None), ("soon", None), ("inf", None), ("nan", None)],
)
def test_retry_after_in_seconds(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds


def test_retry_after_as_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert retry_after(later) == pytest.approx(90, abs=30)
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_texts_lose_keys_card_numbers_and_lines() -> None:
    text = clean_reason("Invalid key sk_live_4eC39HqLyjWDarjtT1zdp7dc\nfor card 4242 4242 4242 4242\x00, amount 1250")
    assert "4eC39" not in text
    assert "4242" not in text
    assert "\n" not in text
    assert "\x00" not in text
    assert text.endswith("amount 1250")
    assert str(ProviderError("card 4000-0000-0000-0002")) == "card ***"


@pytest.mark.parametrize("key", ["payment:1:charge", "k" * 255])
def test_a_plain_key_is_sent_as_it_is(key: str) -> None:
    assert stripe_key(key) == key


def test_different_long_keys_stay_different() -> None:
    assert stripe_key("k" * 256) != stripe_key("k" * 257)
