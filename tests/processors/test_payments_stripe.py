"""The payments processor with the real Stripe client against a local Stripe, and a proxy that loses answers."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from payment_context import Crash, Desk
from payment_proxy import LosingProxy
from stripe_server import PAYMENTS, StripeServer

from queue_worker.errors import Reject, Retry, Unavailable
from queue_worker.processor import Processor
from queue_worker.processors.payment_providers import CannotTell, Charge, RequestRefused, Result
from queue_worker.processors.payment_stripe import StripeProvider
from queue_worker.processors.payments import PaymentsConfig, make_processor
from tests.helpers import wait_until

pytest_plugins = ["payment_fixtures"]

DECLINING_CARD = "pm_card_chargeCustomerFail"
CARD_THAT_ASKS = "4000002500003155"


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


def config(url: str, **more: Any) -> PaymentsConfig:
    return PaymentsConfig(
        source="public.payment_source",
        result="public.payment_result",
        provider="stripe",
        stripe_api_key="sk_test_12345",
        stripe_api_base=url,
        **more,
    )


@pytest.fixture
def payments(stripe: StripeServer) -> Iterator[Processor]:
    processor = make_processor(config(stripe.url))
    yield processor
    assert processor.close is not None
    processor.close()


def post(stripe: StripeServer, path: str, **fields: Any) -> Any:
    request = urllib.request.Request(
        stripe.url + path, urlencode(fields).encode(), {"Authorization": "Bearer sk_test_12345"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def card(stripe: StripeServer, number: str = "4242424242424242") -> str:
    fields = {"type": "card", "card[number]": number, "card[exp_month]": 12, "card[exp_year]": 2040, "card[cvc]": 123}
    return str(post(stripe, "/v1/payment_methods", **fields)["id"])


def customer(stripe: StripeServer, method: str | None) -> str:
    customer_id = str(post(stripe, "/v1/customers", name="Ann")["id"])
    if method is not None:
        post(stripe, f"/v1/payment_methods/{method}/attach", customer=customer_id)
        post(stripe, f"/v1/customers/{customer_id}", **{"invoice_settings[default_payment_method]": method})
    return customer_id


def test_a_card_is_charged_with_the_key_and_the_metadata(desk: Desk, stripe: StripeServer, payments: Processor) -> None:
    order = desk.order(1999, "EUR", card(stripe))
    assert desk.run(payments) is None
    (charge,) = stripe.charges()
    (request,) = stripe.requests()
    assert (charge["amount"], charge["currency"]) == (1999, "eur")
    assert request["key"] == f"payment:{order}:charge"
    assert f"metadata[queue_worker_key]=payment%3A{order}%3Acharge" in request["body"].replace("%5B", "[").replace(
        "%5D", "]"
    )
    row = desk.payment(order)
    assert (row["status"], row["provider_id"]) == ("succeeded", charge["payment_intent"])
    assert stripe.requests(method="GET") == []


def test_a_customer_is_charged_on_the_default_payment_method(
    desk: Desk, stripe: StripeServer, payments: Processor
) -> None:
    method = card(stripe)
    customer_id = customer(stripe, method)
    for account in (customer_id, f"{customer_id}/{method}"):
        desk.order(account=account)
        assert desk.run(payments) is None
    assert [f"customer={customer_id}" in one["body"] and method in one["body"] for one in stripe.requests()] == [
        True,
        True,
    ]
    assert len(stripe.charges()) == 2


@pytest.mark.parametrize("account", ["none", "4242 4242 4242 4242", "cus_1/cus_2", "pm_a b", "acct_1"])
def test_an_account_that_cannot_be_charged_fails_the_payment(
    desk: Desk, stripe: StripeServer, payments: Processor, account: str
) -> None:
    order = desk.order(account=customer(stripe, None) if account == "none" else account)
    assert desk.run(payments) is None
    row = desk.payment(order)
    assert row["status"] == "failed"
    assert row["error"].startswith("no_payment_method" if account == "none" else "invalid_account")
    assert stripe.requests() == []


def test_a_declined_card_is_final_and_handled(desk: Desk, stripe: StripeServer, payments: Processor) -> None:
    order = desk.order(account=DECLINING_CARD)
    assert desk.run(payments) is None
    row = desk.payment(order)
    assert (row["status"], row["error"]) == ("failed", "card_declined: Your card was declined.")
    assert desk.ledger()[0]["state"] == "failed"
    assert (stripe.charges(), desk.messages()) == ([], [])


def test_a_decline_whose_answer_was_lost_is_found(desk: Desk, stripe: StripeServer, proxy: LosingProxy) -> None:
    order = desk.order(account=DECLINING_CARD)
    payments = make_processor(config(proxy.url))
    proxy.lose = lambda method, path: method == "POST"
    assert isinstance(desk.run(payments), Retry)
    assert desk.run(payments, 2) is None
    assert desk.payment(order)["error"] == "card_declined: Your card was declined."
    assert len(stripe.requests()) == 1


def test_a_card_that_asks_for_the_payer_is_cancelled_and_fails(
    desk: Desk, stripe: StripeServer, payments: Processor
) -> None:
    order = desk.order(account=card(stripe, CARD_THAT_ASKS))
    assert desk.run(payments) is None
    row = desk.payment(order)
    assert row["status"] == "failed"
    assert row["error"].startswith("authentication_required")
    assert len(stripe.requests(f"{PAYMENTS}/{row['provider_id']}/cancel")) == 1


def test_five_attempts_without_an_answer_make_one_charge(desk: Desk, stripe: StripeServer, proxy: LosingProxy) -> None:
    """The provider charges and the answer is lost, for the charge and for the questions after it."""
    order = desk.order(account=card(stripe))
    payments = make_processor(config(proxy.url))
    proxy.lose = lambda method, path: True
    for attempt in range(1, 5):
        error = desk.run(payments, attempt)
        assert isinstance(error, Retry)
        assert "no answer from Stripe: ConnectionError" in error.reason
        assert (desk.ledger()[0]["state"], desk.payment(order)["status"]) == ("unknown", "pending")
    assert proxy.lost == 4
    proxy.lose = lambda method, path: False
    assert desk.run(payments, 5) is None
    assert len(stripe.charges()) == 1
    assert len(stripe.requests()) == 1
    assert desk.payment(order)["provider_id"] == stripe.charges()[0]["payment_intent"]


def test_five_charges_with_one_key_make_one_charge(desk: Desk, stripe: StripeServer, proxy: LosingProxy) -> None:
    """Where the question finds nothing, the same key protects: every attempt calls the provider again."""

    class NeverFinds(StripeProvider):
        def find(self, charge: Charge) -> Result | None:
            return None

    provider = NeverFinds("sk_test_12345", api_base=proxy.url)
    payments = make_processor(config(proxy.url), lambda call: provider)
    order = desk.order(account=card(stripe))
    proxy.lose = lambda method, path: method == "POST"
    for attempt in range(1, 5):
        assert isinstance(desk.run(payments, attempt), Retry)
    proxy.lose = lambda method, path: False
    assert desk.run(payments, 5) is None
    assert [one["key"] for one in stripe.requests()] == [f"payment:{order}:charge"] * 5
    assert [one["replayed"] for one in stripe.requests()] == [False, True, True, True, True]
    assert len(stripe.charges()) == 1
    provider.close()


def test_a_provider_that_is_down_leaves_the_payment_unknown(desk: Desk, stripe: StripeServer) -> None:
    desk.order(account=card(stripe))
    gone = LosingProxy(stripe.port)
    gone.close()
    payments = make_processor(config(gone.url))
    assert isinstance(desk.run(payments), Retry)
    error = desk.run(payments, 6)
    assert isinstance(error, Reject)
    assert error.reason.startswith("unknown_outcome: ")
    assert desk.ledger()[0]["state"] == "unknown"
    assert stripe.charges() == []


def test_an_answer_that_takes_too_long_is_unknown_then_found(desk: Desk, stripe: StripeServer) -> None:
    order = desk.order(account=card(stripe))
    stripe.script({"hold": True})
    payments = make_processor(config(stripe.url, timeouts=(5.0, 0.3)))
    error = desk.run(payments)
    assert isinstance(error, Retry)
    assert "ReadTimeout" in error.reason
    stripe.release()
    wait_until(lambda: not stripe.held())
    assert desk.run(payments, 2) is None
    assert (len(stripe.charges()), desk.payment(order)["status"]) == (1, "succeeded")


@pytest.mark.parametrize("charged", [True, False])
def test_a_500_is_never_followed_by_a_second_charge(
    desk: Desk, stripe: StripeServer, payments: Processor, charged: bool
) -> None:
    """Stripe replays its first answer, a 500 included, so only the question can tell."""
    order = desk.order(account=card(stripe))
    stripe.script({"status": 500, "charge": charged})
    error = desk.run(payments)
    assert isinstance(error, Retry)
    assert "Stripe answered 500" in error.reason
    second = desk.run(payments, 2)
    if charged:
        assert second is None
        assert (len(stripe.charges()), desk.payment(order)["status"]) == (1, "succeeded")
        return
    assert isinstance(second, Retry)
    assert [one["replayed"] for one in stripe.requests()] == [False, True]
    assert len(stripe.requests(method="GET")) == 2  # once before the call, once after the replayed 500
    last = desk.run(payments, 6)
    assert isinstance(last, Reject)
    assert last.reason.startswith("unknown_outcome: ")
    assert (stripe.charges(), desk.ledger()[0]["state"]) == ([], "unknown")
    assert {one["key"] for one in stripe.requests()} == {f"payment:{order}:charge"}
    stripe.forget_keys()
    assert desk.run(payments) is None
    assert len(stripe.charges()) == 1


def test_a_replayed_500_on_the_first_attempt_is_asked_about(
    desk: Desk, stripe: StripeServer, payments: Processor
) -> None:
    """The ledger row was lost, for example by a restored backup: Stripe still knows the key."""
    order = desk.order(account=card(stripe))
    stripe.script({"status": 500, "charge": True})
    assert isinstance(desk.run(payments), Retry)
    desk.query("delete from queue_worker_data.payment_ledger")
    assert desk.run(payments) is None
    assert (len(stripe.charges()), desk.payment(order)["status"]) == (1, "succeeded")


def test_a_payment_under_way_elsewhere_is_waited_for(desk: Desk, stripe: StripeServer, payments: Processor) -> None:
    order = desk.order(account=card(stripe))
    desk.send(json.dumps({"id": order}))
    stripe.script({"charge": False, "hold": True, "status": 503})
    first = threading.Thread(target=desk.run, args=[payments])
    first.start()
    wait_until(stripe.held)
    error = desk.run(payments)
    assert isinstance(error, Retry)
    assert "409" in error.reason
    assert stripe.charges() == []
    stripe.release()
    first.join(20)
    stripe.forget_keys()
    assert desk.run(payments, 2) is None
    assert (len(stripe.charges()), desk.payment(order)["status"]) == (1, "succeeded")


def test_retry_after_of_a_rate_limit_is_honoured(desk: Desk, stripe: StripeServer, payments: Processor) -> None:
    desk.order(account=card(stripe))
    stripe.script({"status": 429, "headers": {"Retry-After": "7"}})
    error = desk.run(payments)
    assert isinstance(error, Unavailable)
    assert error.delay == 7.0
    assert len(stripe.requests()) == 1  # the client itself does not repeat
    assert desk.run(payments, 2) is None
    assert len(stripe.charges()) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_api_key_does_not_fail_payments(
    desk: Desk, stripe: StripeServer, payments: Processor, status: int
) -> None:
    order = desk.order(account=card(stripe))
    stripe.script({"status": status, "error": {"message": "Invalid API Key provided: sk_test_abcdefgh"}})
    error = desk.run(payments, 6)
    assert isinstance(error, Retry)
    assert "QUEUE_WORKER_STRIPE_API_KEY" in error.reason
    assert "abcdefgh" not in error.reason
    assert desk.payment(order)["status"] == "pending"
    assert desk.run(payments) is None
    assert len(stripe.charges()) == 1


def test_a_key_of_the_other_mode_does_not_fail_payments(desk: Desk, stripe: StripeServer, payments: Processor) -> None:
    order = desk.order(account=card(stripe))
    message = "No such PaymentMethod: 'pm_1'; a similar object exists in live mode, but a test mode key was used"
    stripe.script({"status": 404, "error": {"message": message, "param": "payment_method", "code": "resource_missing"}})
    assert isinstance(desk.run(payments), Retry)
    assert desk.payment(order)["status"] == "pending"


@pytest.mark.parametrize("param", ["amount", "payment_method"])
def test_a_refused_value_of_the_row_fails_the_payment(
    desk: Desk, stripe: StripeServer, payments: Processor, param: str
) -> None:
    order = desk.order(account=card(stripe))
    stripe.script({"status": 400, "error": {"code": "amount_too_small", "message": "Too small", "param": param}})
    assert desk.run(payments) is None
    assert (desk.payment(order)["status"], desk.payment(order)["error"]) == ("failed", "amount_too_small: Too small")


def test_a_refused_request_is_a_dead_letter_that_can_be_redriven(
    desk: Desk, stripe: StripeServer, payments: Processor
) -> None:
    order = desk.order(account=card(stripe))
    stripe.script({"status": 400, "error": {"message": "Unknown parameter: foo", "param": "foo"}})
    error = desk.run(payments)
    assert isinstance(error, Reject)
    assert error.reason.startswith("provider_refused: payment 1: Stripe answered 400: Unknown parameter")
    assert desk.payment(order)["status"] == "pending"
    assert desk.run(payments) is None
    assert len(stripe.charges()) == 1


def test_a_new_default_card_between_two_attempts_does_not_charge_twice(
    desk: Desk, stripe: StripeServer, proxy: LosingProxy
) -> None:
    customer_id = customer(stripe, card(stripe))
    desk.order(account=customer_id)
    payments = make_processor(config(proxy.url))
    stripe.script({"status": 500})
    assert isinstance(desk.run(payments), Retry)
    other = card(stripe)
    post(stripe, f"/v1/customers/{customer_id}", **{"invoice_settings[default_payment_method]": other})
    error = desk.run(payments, 2)
    assert isinstance(error, Retry)
    assert "same parameters" in error.reason
    assert stripe.charges() == []


def test_a_key_reused_with_another_amount_is_refused(desk: Desk, stripe: StripeServer, payments: Processor) -> None:
    order = desk.order(account=card(stripe))
    assert desk.run(payments) is None
    desk.query("update public.payments set amount_minor = 1")
    desk.send(json.dumps({"id": order}))
    error = desk.run(payments)
    assert isinstance(error, Reject)
    assert error.reason.startswith("key_reuse: ")
    assert len(stripe.requests()) == 1


def test_a_crash_between_charge_and_finish_charges_once(desk: Desk, stripe: StripeServer, payments: Processor) -> None:
    order = desk.order(account=card(stripe))
    desk.context.crash = True
    assert isinstance(desk.run(payments), Crash)
    desk.context.crash = False
    assert desk.run(payments) is None
    assert (len(stripe.charges()), len(stripe.requests())) == (1, 1)
    assert (desk.payment(order)["status"], desk.ledger()[0]["state"]) == ("succeeded", "succeeded")


def test_a_payment_still_processing_waits_and_ends_with_a_person(
    desk: Desk, stripe: StripeServer, proxy: LosingProxy
) -> None:
    order = desk.order(account=card(stripe))
    intent = post(
        stripe,
        PAYMENTS,
        amount=1250,
        currency="eur",
        payment_method=desk.payment(order)["account"],
        **{"metadata[queue_worker_key]": f"payment:{order}:charge"},
    )
    desk.context.crash = True  # leaves the ledger at reserved
    stripe.script({"status": 503})
    payments = make_processor(config(proxy.url))
    assert isinstance(desk.run(payments), Unavailable)
    error = desk.run(payments, 2)
    assert isinstance(error, Retry)
    assert "requires_confirmation" in error.reason
    assert isinstance(desk.run(payments, 6), Reject)
    post(stripe, f"{PAYMENTS}/{intent['id']}/confirm")
    desk.context.crash = False
    assert desk.run(payments) is None
    assert desk.payment(order)["provider_id"] == intent["id"]


def test_find_pages_through_everything_since_the_first_attempt(stripe: StripeServer) -> None:
    provider = StripeProvider("sk_test_12345", api_base=stripe.url)
    charge = Charge("payment:1:charge", "1", 5, "EUR", "pm_card_visa", time.time(), time.time())
    assert provider.find(charge) is None
    first = provider.charge(charge)
    for number in range(120):
        post(stripe, PAYMENTS, amount=number + 1, currency="eur")
    assert provider.find(charge) == first
    assert len(stripe.requests(method="GET")) == 3
    later = time.time() + 10_000
    assert provider.find(Charge("payment:1:charge", "1", 5, "EUR", "pm_card_visa", later)) is None
    provider.close()


def test_find_refuses_a_charge_of_another_amount_under_the_key(stripe: StripeServer) -> None:
    provider = StripeProvider("sk_test_12345", api_base=stripe.url)
    provider.charge(Charge("payment:1:charge", "1", 5, "EUR", "pm_card_visa"))
    with pytest.raises(RequestRefused):
        provider.find(Charge("payment:1:charge", "1", 6, "EUR", "pm_card_visa"))
    provider.close()


def test_find_says_when_there_is_too_much_to_look_at(stripe: StripeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("queue_worker.processors.payment_stripe._MAX_PAGES", 1)
    monkeypatch.setattr("queue_worker.processors.payment_stripe._PAGE", 2)
    provider = StripeProvider("sk_test_12345", api_base=stripe.url)
    for number in range(3):
        post(stripe, PAYMENTS, amount=number + 1, currency="eur")
    with pytest.raises(CannotTell):
        provider.find(Charge("payment:1:charge", "1", 5, "EUR", "pm_card_visa"))
    provider.close()


@pytest.mark.parametrize("key", ["k" * 300, "zahlung:ü", "with space"])
def test_a_key_that_no_header_can_carry_is_sent_as_a_digest(stripe: StripeServer, key: str) -> None:
    provider = StripeProvider("sk_test_12345", api_base=stripe.url)
    charge = Charge(key, "1", 5, "EUR", "pm_card_visa", time.time())
    assert provider.charge(charge) == provider.charge(charge) == provider.find(charge)
    (sent,) = {one["key"] for one in stripe.requests()}
    assert len(sent) == 71
    assert sent.startswith("sha256_")
    assert len(stripe.charges()) == 1
    provider.close()
