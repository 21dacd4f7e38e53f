"""Webhooks of Stripe: what is believed, what it settles, and how the waiting message ends."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient
from payment_context import Desk
from webhook_events import SECRET, event, intent, refund, sign

from queue_worker import payments
from queue_worker.config import load_settings
from queue_worker.errors import ConfigError, Reject, Retry
from queue_worker.processor import Processor
from queue_worker.processors.payment_providers import Charge, OutcomeUnknown, Result
from queue_worker.processors.payment_webhook import read_event
from queue_worker.processors.payments import PaymentsConfig, make_processor

pytest_plugins = ["payment_fixtures"]

DOCS = Path(__file__).parents[2] / "docs" / "processors.md"

Hook = Any


class Silent:
    """A provider that never answers; its charges are told by webhook alone."""

    name = "stripe"
    key_lifetime = None

    def charge(self, charge: Charge) -> Result:
        raise OutcomeUnknown("no answer")

    capture = refund = charge

    def find(self, charge: Charge) -> Result | None:
        raise OutcomeUnknown("no answer")

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def silent() -> Processor:
    config = PaymentsConfig(source="public.payment_source", result="public.payment_result", provider="stripe")
    return make_processor(config, lambda call: Silent())


@pytest.fixture
def hook(dsn: str) -> Hook:
    """Deliver an event; returns what was settled."""
    settings = load_settings({"database_url": dsn, "stripe_webhook_secret": SECRET})

    def deliver(kind: str, thing: dict[str, Any]) -> list[payments.Settled]:
        body = event(kind, thing)
        return payments.handle_webhook(body, sign(body), settings=settings)

    return deliver


def unknown(desk: Desk, silent: Processor, delay: int = 3600) -> str:
    """A payment whose outcome is unknown, and whose message waits for its retry; returns its key."""
    order = desk.order()
    assert isinstance(desk.run(silent), Retry)
    (row,) = desk.query("select msg_id, read_ct, enqueued_at from queue_worker.claim('payments', 1, 60)")
    desk.query(
        "select queue_worker.settle('payments', other_ids => %s, other_cts => %s, other_ats => %s,"
        " kinds => '{failed}', delays => %s, reasons => '{null}', errors => '{x}')",
        [row["msg_id"]],
        [row["read_ct"]],
        [row["enqueued_at"]],
        [delay],
    )
    return f"payment:{order}:charge"


def due(desk: Desk) -> int:
    return len(desk.query("select 1 from pgmq.q_payments where vt <= clock_timestamp()"))


def test_an_unknown_payment_is_settled_and_its_message_runs_at_once(desk: Desk, silent: Processor, hook: Hook) -> None:
    key = unknown(desk, silent)
    assert due(desk) == 0
    assert hook("payment_intent.succeeded", intent(key)) == [("settled", key, "succeeded", "released")]
    assert due(desk) == 1
    assert desk.run(silent) is None
    row = desk.payment(1)
    assert (row["status"], row["provider_id"], desk.messages()) == ("succeeded", "pi_9", [])
    [audit] = desk.query("select detail from queue_worker.audit where action = 'settle_payment'")
    assert (audit["detail"]["before"], audit["detail"]["outcome"]) == ("unknown", "settled")


def test_a_decline_is_settled_with_its_reason(desk: Desk, silent: Processor, hook: Hook) -> None:
    key = unknown(desk, silent)
    error = {"decline_code": "insufficient_funds", "message": "Your card has insufficient funds."}
    thing = intent(key, "requires_payment_method", last_payment_error=error)
    assert hook("payment_intent.payment_failed", thing)[0].outcome == "settled"
    assert desk.run(silent) is None
    assert desk.payment(1)["error"] == "insufficient_funds: Your card has insufficient funds."


def test_a_dead_letter_is_sent_again_and_ends(desk: Desk, silent: Processor, hook: Hook) -> None:
    order = desk.order()
    assert isinstance(desk.run(silent, 6), Reject)
    row = desk.messages()[0]
    bury = "select queue_worker_data.bury('payments', %s, %s, %s, 'dead', 'rejected', 'x', '')"
    desk.query(bury, row["msg_id"], row["read_ct"], row["enqueued_at"])
    settled = hook("payment_intent.succeeded", intent(f"payment:{order}:charge"))
    assert settled[0].message == "redriven"
    assert desk.run(silent) is None
    assert (desk.payment(order)["status"], desk.messages()) == ("succeeded", [])


def test_where_the_message_is_gone_a_new_one_tells_the_row(desk: Desk, silent: Processor, hook: Hook) -> None:
    key = unknown(desk, silent)
    desk.query("delete from pgmq.q_payments")
    assert hook("payment_intent.succeeded", intent(key))[0].message == "sent"
    assert desk.run(silent) is None
    assert desk.payment(1)["status"] == "succeeded"


def test_a_message_that_runs_is_left_to_its_worker(desk: Desk, silent: Processor, hook: Hook) -> None:
    """The webhook overtakes the answer: the run, which gets none, finds the outcome recorded and ends."""
    order = desk.order()
    found: list[payments.Settled] = []

    def overtake(function: str) -> None:
        if function == "queue_worker.payment_reserve":
            found.extend(hook("payment_intent.succeeded", intent(f"payment:{order}:charge")))

    desk.query("select queue_worker.claim('payments', 1, 60)")
    desk.context.after_call = overtake
    assert desk.run(silent) is None
    assert [(one.outcome, one.message) for one in found] == [("settled", "running")]
    assert desk.payment(order)["status"] == "succeeded"


def test_a_message_of_another_payment_is_never_released(desk: Desk, silent: Processor, hook: Hook) -> None:
    """The queue was made anew, and its first message has the number of an old one."""
    key = unknown(desk, silent)
    desk.query("update pgmq.q_payments set message = '{\"id\": 4711}'")
    assert hook("payment_intent.succeeded", intent(key))[0].message == "sent"
    assert desk.query("select 1 from pgmq.q_payments where message ->> 'id' = '4711' and vt <= now()") == []


def test_the_same_event_again_changes_nothing(desk: Desk, silent: Processor, hook: Hook) -> None:
    key = unknown(desk, silent)
    hook("payment_intent.succeeded", intent(key))
    assert desk.run(silent) is None
    for _ in range(3):
        assert hook("payment_intent.succeeded", intent(key)) == [("known", key, "succeeded", None)]
    assert desk.messages() == []
    assert len(desk.query("select 1 from queue_worker.audit where action = 'settle_payment'")) == 1


def test_one_event_delivered_many_times_at_once_is_settled_once(desk: Desk, silent: Processor, hook: Hook) -> None:
    key = unknown(desk, silent)
    outcomes: list[str] = []
    deliver = [
        threading.Thread(target=lambda: outcomes.append(hook("payment_intent.succeeded", intent(key))[0].outcome))
        for _ in range(6)
    ]
    for one in deliver:
        one.start()
    for one in deliver:
        one.join(60)
    assert sorted(outcomes) == ["known"] * 5 + ["settled"]
    assert len(desk.query("select 1 from queue_worker.audit where action = 'settle_payment'")) == 1


def test_a_message_that_its_worker_holds_is_not_waited_for(desk: Desk, silent: Processor, hook: Hook, dsn: str) -> None:
    """The worker's transaction has the message and wants the ledger row: waiting the other way round would deadlock."""
    key = unknown(desk, silent)
    with psycopg.connect(dsn) as worker:
        worker.execute("select 1 from pgmq.q_payments for update")
        assert hook("payment_intent.succeeded", intent(key)) == [("settled", key, "succeeded", "running")]
        worker.execute("select queue_worker.payment_finish(%s, 'succeeded', 'pi_9', null)", [key])
    assert desk.ledger()[0]["state"] == "succeeded"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("payment_intent.processing", "processing"),
        ("payment_intent.payment_failed", "requires_payment_method"),
        ("payment_intent.canceled", "canceled"),
        ("payment_intent.created", "requires_confirmation"),
    ],
)
def test_what_comes_too_late_never_undoes_a_success(
    desk: Desk, silent: Processor, hook: Hook, kind: str, status: str
) -> None:
    key = unknown(desk, silent)
    hook("payment_intent.succeeded", intent(key))
    late = hook(kind, intent(key, status))
    assert [one.outcome for one in late] in ([], ["conflict"])
    assert desk.ledger()[0]["state"] == "succeeded"


def test_a_success_after_a_recorded_failure_is_left_to_a_person(desk: Desk, silent: Processor, hook: Hook) -> None:
    key = unknown(desk, silent)
    hook("payment_intent.payment_failed", intent(key, "requires_payment_method"))
    assert hook("payment_intent.succeeded", intent(key)) == [("conflict", key, "failed", None)]
    details = [row["detail"] for row in desk.query("select detail from queue_worker.audit order by audit_id")]
    assert [one["outcome"] for one in details if "outcome" in one] == ["settled", "conflict"]


def test_processing_settles_nothing(desk: Desk, silent: Processor, hook: Hook) -> None:
    key = unknown(desk, silent)
    assert hook("payment_intent.processing", intent(key, "processing")) == []
    assert hook("refund.created", refund(key, "pending")) == []
    assert (desk.ledger()[0]["state"], due(desk)) == ("unknown", 0)


@pytest.mark.parametrize("change", [{"amount": 1}, {"currency": "usd"}])
def test_another_amount_or_currency_settles_nothing(
    desk: Desk, silent: Processor, hook: Hook, change: dict[str, Any]
) -> None:
    key = unknown(desk, silent)
    assert hook("payment_intent.succeeded", intent(key, **change))[0].outcome == "mismatch"
    assert desk.ledger()[0]["state"] == "unknown"


def test_events_about_others_are_ignored(desk: Desk, silent: Processor, hook: Hook) -> None:
    unknown(desk, silent)
    assert hook("payment_intent.succeeded", intent(None)) == []
    assert hook("customer.created", {"id": "cus_1", "object": "customer"}) == []
    assert hook("payment_intent.succeeded", intent("payment:4711:charge"))[0].outcome == "not_ours"
    assert desk.ledger()[0]["state"] == "unknown"


def test_a_payment_of_the_sandbox_is_never_settled_by_stripe(desk: Desk, hook: Hook) -> None:
    desk.order(account="always_fails")
    config = PaymentsConfig(source="public.payment_source", result="public.payment_result")
    assert isinstance(desk.run(make_processor(config)), Retry)
    assert hook("payment_intent.succeeded", intent("payment:1:charge"))[0].outcome == "not_ours"


def test_a_key_that_stripe_sees_as_a_digest_is_found(desk: Desk, silent: Processor, hook: Hook) -> None:
    desk.query(
        "create or replace function public.payment_source(id text) returns table (amount_minor bigint, currency text,"
        " account text, key text) language sql as"
        " $$ select p.amount_minor, p.currency, p.account, 'zahlung ü ' || p.id from public.payments p $$"
    )
    desk.order()
    assert isinstance(desk.run(silent), Retry)
    from queue_worker.processors.payment_stripe_results import stripe_key

    settled = hook("payment_intent.succeeded", intent(stripe_key("zahlung ü 1")))
    assert (settled[0].outcome, settled[0].key) == ("settled", "zahlung ü 1")


def test_authorization_capture_and_refund_are_settled_by_their_own_events(
    actions: Desk, silent: Processor, hook: Hook
) -> None:
    order = actions.authorized(1250)
    assert isinstance(actions.run(silent), Retry)
    key = f"payment:{order}:charge"
    assert hook("payment_intent.amount_capturable_updated", intent(key, "requires_capture"))[0].outcome == "settled"
    assert actions.run(silent) is None
    capture = actions.act("capture", order, 800)
    assert isinstance(actions.run(silent), Retry)
    metadata = {"queue_worker_key": key, "queue_worker_capture_key": f"payment_action:{capture}"}
    captured = intent(key, amount_received=800, metadata=metadata)
    assert [one.outcome for one in hook("payment_intent.succeeded", captured)] == ["known", "settled"]
    assert actions.run(silent) is None
    given = actions.act("refund", order, 300)
    assert isinstance(actions.run(silent), Retry)
    assert hook("refund.updated", refund(f"payment_action:{given}"))[0].outcome == "settled"
    assert actions.run(silent) is None
    assert [actions.action(one)["status"] for one in (capture, given)] == ["succeeded", "succeeded"]


# ------------------------------------------------------------------------------------------------- the signature


def test_only_our_secret_and_a_fresh_signature_are_believed() -> None:
    body = event("payment_intent.succeeded", intent("k"))
    assert len(read_event(body, sign(body), SECRET)) == 1
    wrong = [
        (body, sign(body, secret="whsec_other")),
        (body, sign(body, at=time.time() - 301)),
        (body.replace(b"1250", b"9999"), sign(body)),
        (body, ""),
        (body, "t=abc,v1=00"),
        (b"\xff\xfe", sign(b"\xff\xfe")),
        (b"no json", sign(b"no json")),
        (b"[]", sign(b"[]")),
    ]
    for data, signature in wrong:
        with pytest.raises(payments.InvalidSignature) as caught:
            read_event(data, signature, SECRET)
        assert SECRET not in str(caught.value)
        assert "pi_9" not in str(caught.value)


@pytest.mark.parametrize("thing", [{}, {"metadata": {"queue_worker_key": "k"}}, {"metadata": 7}, {"metadata": None}])
def test_a_signed_event_of_an_unknown_shape_is_ignored(thing: dict[str, Any]) -> None:
    body = event("payment_intent.succeeded", thing)
    assert read_event(body, sign(body), SECRET) == []


def test_without_a_secret_nothing_is_believed(dsn: str) -> None:
    body = event("payment_intent.succeeded", intent("k"))
    with pytest.raises(ConfigError, match="QUEUE_WORKER_STRIPE_WEBHOOK_SECRET"):
        payments.handle_webhook(body, sign(body), settings=load_settings({"database_url": dsn}))
    with pytest.raises(ConfigError, match="QUEUE_WORKER_STRIPE_WEBHOOK_SECRET"):
        read_event(body, sign(body, secret=""), "")


# ------------------------------------------------------------------------------------------------- in a web framework


def test_a_route_of_fastapi_settles(desk: Desk, silent: Processor, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The route of docs/processors.md."""
    monkeypatch.setenv("DATABASE_URL", dsn)
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", SECRET)
    scope: dict[str, Any] = {}
    (block,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    exec(block, scope)
    key = unknown(desk, silent)
    body = event("payment_intent.succeeded", intent(key))
    with TestClient(scope["app"]) as client:
        assert client.post("/stripe", content=body, headers={"Stripe-Signature": "t=1,v1=0"}).status_code == 400
        assert desk.ledger()[0]["state"] == "unknown"
        answer = client.post("/stripe", content=body, headers={"Stripe-Signature": sign(body)})
    assert answer.status_code == 200
    assert (desk.ledger()[0]["state"], due(desk)) == ("succeeded", 1)
