"""Authorizations, captures and refunds with the sandbox: by rows of their own, under the rules of a charge."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from payment_context import Crash, Desk

from queue_worker import App
from queue_worker.errors import Reject, Retry, Unavailable
from queue_worker.processor import Processor
from queue_worker.processors.payments import PaymentsConfig, make_processor
from tests.helpers import running, wait_until

pytest_plugins = ["payment_fixtures"]

CONFIG: dict[str, Any] = {"source": "public.payment_source", "result": "public.payment_result"}


@pytest.fixture
def sandbox() -> Processor:
    return make_processor(PaymentsConfig(**CONFIG))


def moved(desk: Desk, action: str) -> list[int]:
    """The amounts of what the sandbox really did."""
    rows = desk.query(
        "select amount_minor from queue_worker_data.sandbox_charges where action = %s and status = 'succeeded'"
        " order by created_at",
        action,
    )
    return [row["amount_minor"] for row in rows]


def entry(desk: Desk, action: str) -> dict[str, Any]:
    (row,) = [one for one in desk.ledger() if one["action"] == action]
    return row


def test_a_refund_gives_the_money_of_its_payment_back_and_tells_its_own_row(actions: Desk, sandbox: Processor) -> None:
    order = actions.order(1250)
    assert actions.run(sandbox) is None
    refund = actions.act("refund", order, 400)
    assert actions.run(sandbox) is None
    row = actions.action(refund)
    assert (row["status"], row["error"]) == ("succeeded", None)
    assert row["provider_id"] != actions.payment(order)["provider_id"]
    assert moved(actions, "refund") == [400]
    ledger = entry(actions, "refund")
    assert (ledger["key"], ledger["payment_key"]) == (f"payment_action:{refund}", f"payment:{order}:charge")
    assert (ledger["state"], ledger["account"]) == ("succeeded", "ann")
    assert actions.note()["action"] == "refund"
    assert (actions.payment(order)["status"], actions.messages()) == ("succeeded", [])


def test_an_authorization_takes_money_only_when_it_is_captured(actions: Desk, sandbox: Processor) -> None:
    order = actions.authorized(1000)
    assert actions.run(sandbox) is None
    assert (actions.payment(order)["status"], moved(actions, "charge")) == ("authorized", [])
    early = actions.act("refund", order, 1)
    assert actions.run(sandbox) is None
    assert actions.action(early)["error"] == "refund_too_large: 0 is left to refund"
    capture = actions.act("capture", order, 700)
    assert actions.run(sandbox) is None
    assert actions.action(capture)["status"] == "succeeded"
    assert moved(actions, "capture") == [700]
    again = actions.act("capture", order, 100)
    assert actions.run(sandbox) is None
    assert actions.action(again)["error"].startswith("already_captured: ")
    too_much = actions.act("refund", order, 701)
    assert actions.run(sandbox) is None
    assert actions.action(too_much)["status"] == "failed"
    actions.act("refund", order, 700)
    assert actions.run(sandbox) is None
    assert moved(actions, "refund") == [700]


def test_more_than_was_paid_is_a_recorded_failure(actions: Desk, sandbox: Processor) -> None:
    order = actions.order(1000)
    assert actions.run(sandbox) is None
    results = []
    for amount in (600, 500, 400):
        refund = actions.act("refund", order, amount)
        assert actions.run(sandbox) is None
        results.append((actions.action(refund)["status"], actions.action(refund)["error"]))
    assert results == [("succeeded", None), ("failed", "refund_too_large: 400 is left to refund"), ("succeeded", None)]
    assert moved(actions, "refund") == [600, 400]
    assert [one["state"] for one in actions.ledger()] == ["succeeded", "succeeded", "failed", "succeeded"]


def test_amount_and_payment_come_from_the_row_never_from_the_message(actions: Desk, sandbox: Processor) -> None:
    order = actions.order(1000)
    assert actions.run(sandbox) is None
    refund = actions.act("refund", order, 100)
    actions.query("delete from pgmq.q_payments")
    forged = {"amount": 999, "amount_minor": 999, "payment_key": "x", "account": "mallory", "new": {"amount_minor": 9}}
    actions.send(json.dumps({"id": refund, "action": "refund", **forged}))
    assert actions.run(sandbox) is None
    assert moved(actions, "refund") == [100]


def test_a_message_that_names_another_action_finds_no_row(actions: Desk, sandbox: Processor) -> None:
    order = actions.order(1000)
    assert actions.run(sandbox) is None
    refund = actions.act("refund", order, 100)
    actions.query("delete from pgmq.q_payments")
    actions.send(json.dumps({"id": refund, "action": "capture"}))
    error = actions.run(sandbox)
    assert isinstance(error, Reject)
    assert error.reason.startswith("not_found: ")


def test_an_unknown_action_is_refused(sandbox: Processor) -> None:
    with pytest.raises(Exception, match="action"):
        sandbox.parse('{"id": 1, "action": "steal"}')


def test_a_second_message_for_a_refund_does_not_refund_again(actions: Desk, sandbox: Processor) -> None:
    order = actions.order(1000)
    assert actions.run(sandbox) is None
    refund = actions.act("refund", order, 100)
    actions.send(json.dumps({"id": refund, "action": "refund"}))
    assert actions.run(sandbox) is None
    assert actions.run(sandbox) is None
    assert moved(actions, "refund") == [100]
    assert actions.query("select calls from queue_worker_data.sandbox_charges where action = 'refund'") == [
        {"calls": 1}
    ]


@pytest.mark.parametrize("action", ["refund", "capture"])
def test_a_lost_answer_is_asked_for_not_done_again(actions: Desk, sandbox: Processor, action: str) -> None:
    account = f"{action}_timeout_after_charge"
    order = actions.order(1000, account=account) if action == "refund" else actions.authorized(1000, account)
    assert actions.run(sandbox) is None
    done = actions.act(action, order, 300)
    assert isinstance(actions.run(sandbox), Retry)
    assert (entry(actions, action)["state"], actions.action(done)["status"]) == ("unknown", "pending")
    assert actions.run(sandbox, 2) is None
    assert actions.action(done)["status"] == "succeeded"
    assert moved(actions, action) == [300]
    assert actions.query("select calls from queue_worker_data.sandbox_charges where action = %s", action) == [
        {"calls": 1}
    ]


def test_a_crash_after_the_refund_refunds_once(actions: Desk, sandbox: Processor) -> None:
    order = actions.order(1000)
    assert actions.run(sandbox) is None
    refund = actions.act("refund", order, 300)
    actions.context.crash = True
    assert isinstance(actions.run(sandbox), Crash)
    assert entry(actions, "refund")["state"] == "reserved"
    actions.context.crash = False
    assert actions.run(sandbox) is None
    assert (moved(actions, "refund"), actions.action(refund)["status"]) == ([300], "succeeded")


def test_without_an_outcome_the_last_attempt_leaves_it_to_a_person(actions: Desk, sandbox: Processor) -> None:
    order = actions.order(1000, account="refund_always_fails")
    assert actions.run(sandbox) is None
    actions.act("refund", order, 300)
    error = actions.run(sandbox, 6)
    assert isinstance(error, Reject)
    assert error.reason.startswith("unknown_outcome: ")
    assert "payments resolve KEY" in error.reason


def test_a_rate_limit_pauses_the_queue(actions: Desk, sandbox: Processor) -> None:
    order = actions.order(1000, account="refund_rate_limited")
    assert actions.run(sandbox) is None
    actions.act("refund", order, 300)
    error = actions.run(sandbox)
    assert isinstance(error, Unavailable)
    assert error.delay == 1.0


def test_a_refund_waits_until_the_outcome_of_its_payment_is_known(actions: Desk, sandbox: Processor) -> None:
    order = actions.order(1000, account="always_fails")
    assert isinstance(actions.run(sandbox), Retry)
    actions.query("delete from pgmq.q_payments")
    refund = actions.act("refund", order, 300)
    error = actions.run(sandbox)
    assert isinstance(error, Retry)
    assert "not known yet" in error.reason
    actions.query("select queue_worker.payment_finish(%s, 'failed', null, 'gone')", f"payment:{order}:charge")
    assert actions.run(sandbox) is None
    assert actions.action(refund)["error"].startswith("payment_failed: ")
    assert (entry(actions, "refund")["state"], moved(actions, "refund")) == ("failed", [])


def test_a_refund_of_a_payment_that_nobody_made_is_a_dead_letter(actions: Desk, sandbox: Processor) -> None:
    order = actions.order(1000)
    actions.query("delete from pgmq.q_payments")
    actions.act("refund", order, 300)
    error = actions.run(sandbox)
    assert isinstance(error, Reject)
    assert error.reason.startswith("not_found: ")
    assert actions.ledger() == []


def test_a_capture_of_a_plain_charge_is_a_dead_letter(actions: Desk, sandbox: Processor) -> None:
    order = actions.order(1000)
    assert actions.run(sandbox) is None
    actions.act("capture", order, 300)
    error = actions.run(sandbox)
    assert isinstance(error, Reject)
    assert error.reason.startswith("invalid_payment: ")
    assert moved(actions, "capture") == []


def test_a_payment_is_charged_or_authorized_never_both(actions: Desk, sandbox: Processor) -> None:
    order = actions.order(1000)
    assert actions.run(sandbox) is None
    actions.send(json.dumps({"id": order, "action": "authorize"}))
    error = actions.run(sandbox)
    assert isinstance(error, Reject)
    assert error.reason.startswith("key_reuse: ")
    assert moved(actions, "authorize") == []


def test_a_refund_whose_amount_changed_is_refused(actions: Desk, sandbox: Processor) -> None:
    order = actions.order(1000)
    assert actions.run(sandbox) is None
    refund = actions.act("refund", order, 100)
    assert actions.run(sandbox) is None
    actions.query("update public.payment_actions set amount_minor = 900")
    actions.send(json.dumps({"id": refund, "action": "refund"}))
    error = actions.run(sandbox)
    assert isinstance(error, Reject)
    assert error.reason.startswith("key_reuse: ")
    assert moved(actions, "refund") == [100]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ("1::bigint, 'EUR', null, 'k', null", "invalid_payment"),
        ("1::bigint, 'EUR', null, 'k', '  '", "invalid_payment"),
        ("1::bigint, 'EUR', null, 'k', 'k'", "invalid_key"),
        ("1::bigint, 'EUR', null, null, 'p'", "invalid_key"),
        ("0::bigint, 'EUR', null, 'k', 'p'", "invalid_amount"),
        ("1::bigint, 'XXX', null, 'k', 'p'", "invalid_currency"),
    ],
)
def test_a_hostile_row_is_refused_before_anything_happens(
    actions: Desk, sandbox: Processor, columns: str, reason: str
) -> None:
    actions.query(
        "create or replace function public.payment_source(id text, action text) returns table (amount_minor bigint,"
        f" currency text, account text, key text, payment_key text) language sql as $$ select {columns} $$"
    )
    actions.send('{"id": 1, "action": "refund"}')
    error = actions.run(sandbox)
    assert isinstance(error, Reject)
    assert error.reason.split(":")[0] == reason
    assert actions.ledger() == []


def test_without_the_second_function_a_refund_waits_and_says_what_is_missing(desk: Desk, sandbox: Processor) -> None:
    desk.send('{"id": 1, "action": "refund"}')
    error = desk.run(sandbox)
    assert isinstance(error, Retry)
    assert "QUEUE_WORKER_PAYMENTS_SOURCE names public.payment_source" in error.reason
    assert "sql/demo/refunds.sql" in error.reason


def test_two_refunds_at_once_cannot_take_the_same_money(actions: Desk, dsn: str) -> None:
    order = actions.order(1000)
    assert actions.run(make_processor(PaymentsConfig(**CONFIG))) is None
    paid = actions.payment(order)["provider_id"]
    gate = threading.Barrier(8)
    statuses: list[str] = []

    def one(number: int) -> None:
        gate.wait(20)
        (row,) = actions.context.call(
            "queue_worker.sandbox_act",
            {
                "key": f"k{number}",
                "action": "refund",
                "amount_minor": 400,
                "currency": "EUR",
                "account": "ann",
                "payment": paid,
            },
        )
        statuses.append(row["status"])

    threads = [threading.Thread(target=one, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(statuses) == ["declined"] * 6 + ["succeeded"] * 2


def test_the_real_worker_charges_captures_and_refunds(actions: Desk, dsn: str, sandbox: Processor) -> None:
    app = App(builtins=False)
    sandbox.options = {"retry": [0.0]}
    app.add(sandbox)
    with running(dsn, app):
        order = actions.authorized(1000)
        wait_until(lambda: actions.payment(order)["status"] == "authorized")
        capture = actions.act("capture", order, 900)
        wait_until(lambda: actions.action(capture)["status"] == "succeeded")
        refund = actions.act("refund", order, 300)
        wait_until(lambda: actions.action(refund)["status"] == "succeeded" and actions.messages() == [])
    assert [one["action"] for one in actions.ledger()] == ["authorize", "capture", "refund"]
