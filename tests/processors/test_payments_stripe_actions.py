"""Authorizations, captures and refunds with the real Stripe client against a local Stripe, and lost answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from payment_context import Desk
from payment_proxy import LosingProxy
from stripe_server import PAYMENTS, StripeServer

from queue_worker.errors import Reject, Retry, Unavailable
from queue_worker.processor import Processor
from queue_worker.processors.payments import PaymentsConfig, make_processor

pytest_plugins = ["payment_fixtures"]

CARD = "pm_card_visa"
REFUNDS = "/v1/refunds"


@pytest.fixture(scope="module")
def stripe_server() -> Iterator[StripeServer]:
    server = StripeServer()
    yield server
    server.close()


@pytest.fixture
def stripe(stripe_server: StripeServer) -> StripeServer:
    stripe_server.reset()
    return stripe_server


@pytest.fixture
def proxy(stripe: StripeServer) -> Iterator[LosingProxy]:
    proxy = LosingProxy(stripe.port)
    yield proxy
    proxy.close()


@pytest.fixture
def payments(proxy: LosingProxy) -> Iterator[Processor]:
    processor = make_processor(
        PaymentsConfig(
            source="public.payment_source",
            result="public.payment_result",
            provider="stripe",
            stripe_api_key="sk_test_12345",
            stripe_api_base=proxy.url,
        )
    )
    yield processor
    assert processor.close is not None
    processor.close()


def paid(actions: Desk, payments: Processor, amount: int = 1000) -> int:
    order = actions.order(amount, account=CARD)
    assert actions.run(payments) is None
    return order


def authorized(actions: Desk, payments: Processor, amount: int = 1000) -> int:
    order = actions.authorized(amount, CARD)
    assert actions.run(payments) is None
    return order


def test_a_refund_carries_its_own_key_and_the_payment(actions: Desk, stripe: StripeServer, payments: Processor) -> None:
    order = paid(actions, payments)
    refund = actions.act("refund", order, 300)
    assert actions.run(payments) is None
    (made,) = stripe.refunds()
    (request,) = stripe.requests(REFUNDS)
    assert (made["amount"], made["payment_intent"]) == (300, actions.payment(order)["provider_id"])
    assert request["key"] == f"payment_action:{refund}"
    assert (actions.action(refund)["status"], actions.action(refund)["provider_id"]) == ("succeeded", made["id"])


def test_more_than_was_paid_is_a_recorded_failure(actions: Desk, stripe: StripeServer, payments: Processor) -> None:
    order = paid(actions, payments)
    rows = []
    for amount in (700, 400, 300, 1):
        refund = actions.act("refund", order, amount)
        assert actions.run(payments) is None
        rows.append((actions.action(refund)["status"], (actions.action(refund)["error"] or "").split(":")[0]))
    assert rows == [
        ("succeeded", ""),
        ("failed", "amount_too_large"),
        ("succeeded", ""),
        ("failed", "charge_already_refunded"),
    ]
    assert [one["amount"] for one in stripe.refunds()] == [700, 300]
    assert actions.messages() == []


def test_an_authorization_is_captured_once(actions: Desk, stripe: StripeServer, payments: Processor) -> None:
    order = authorized(actions, payments)
    assert (actions.payment(order)["status"], "capture_method=manual" in stripe.requests()[0]["body"]) == (
        "authorized",
        True,
    )
    capture = actions.act("capture", order, 800)
    assert actions.run(payments) is None
    assert actions.action(capture)["status"] == "succeeded"
    again = actions.act("capture", order, 100)
    assert actions.run(payments) is None
    assert actions.action(again)["error"].startswith("payment_intent_unexpected_state: ")
    refund = actions.act("refund", order, 801)
    assert actions.run(payments) is None
    assert actions.action(refund)["error"].startswith("amount_too_large: ")


@pytest.mark.parametrize("action", ["refund", "capture"])
def test_five_attempts_without_an_answer_act_once(
    actions: Desk, stripe: StripeServer, proxy: LosingProxy, payments: Processor, action: str
) -> None:
    order = (paid if action == "refund" else authorized)(actions, payments)
    done = actions.act(action, order, 300)
    proxy.lose = lambda method, path: True
    for attempt in range(1, 5):
        assert isinstance(actions.run(payments, attempt), Retry)
        assert actions.action(done)["status"] == "pending"
    proxy.lose = lambda method, path: False
    assert actions.run(payments, 5) is None
    assert actions.action(done)["status"] == "succeeded"
    intent = actions.payment(order)["provider_id"]
    path = REFUNDS if action == "refund" else f"{PAYMENTS}/{intent}/capture"
    assert len(stripe.requests(path)) == 1
    assert len(stripe.refunds()) == (1 if action == "refund" else 0)


@pytest.mark.parametrize("action", ["refund", "capture"])
def test_a_500_is_never_followed_by_a_second_act(
    actions: Desk, stripe: StripeServer, payments: Processor, action: str
) -> None:
    order = (paid if action == "refund" else authorized)(actions, payments)
    done = actions.act(action, order, 300)
    path = REFUNDS if action == "refund" else f"{PAYMENTS}/{actions.payment(order)['provider_id']}/capture"
    stripe.script({"on": f"POST {path}", "status": 500, "charge": True})
    assert isinstance(actions.run(payments), Retry)
    assert actions.run(payments, 2) is None
    assert (len(stripe.requests(path)), actions.action(done)["status"]) == (1, "succeeded")


def test_a_provider_that_is_down_pauses_the_queue(actions: Desk, stripe: StripeServer, payments: Processor) -> None:
    order = paid(actions, payments)
    refund = actions.act("refund", order, 300)
    stripe.script({"on": f"POST {REFUNDS}", "status": 503, "charge": False, "headers": {"Retry-After": "9"}})
    error = actions.run(payments, 6)
    assert isinstance(error, Unavailable)
    assert error.delay == 9.0
    stripe.forget_keys()
    assert actions.run(payments, 6) is None
    assert (len(stripe.refunds()), actions.action(refund)["status"]) == (1, "succeeded")


def test_an_empty_balance_is_waited_for(actions: Desk, stripe: StripeServer, payments: Processor) -> None:
    order = paid(actions, payments)
    refund = actions.act("refund", order, 300)
    broke = {"code": "balance_insufficient", "message": "Insufficient funds in your Stripe balance"}
    stripe.script({"on": f"POST {REFUNDS}", "status": 400, "error": broke})
    assert isinstance(actions.run(payments), Retry)
    assert actions.run(payments, 2) is None
    assert actions.action(refund)["status"] == "succeeded"


def test_a_refused_request_is_a_dead_letter(actions: Desk, stripe: StripeServer, payments: Processor) -> None:
    order = paid(actions, payments)
    actions.act("refund", order, 300)
    stripe.script({"on": f"POST {REFUNDS}", "status": 400, "error": {"message": "Unknown parameter", "param": "foo"}})
    error = actions.run(payments)
    assert isinstance(error, Reject)
    assert error.reason.startswith("provider_refused: ")
