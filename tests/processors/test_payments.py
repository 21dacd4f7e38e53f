"""The payments processor on a real database, with the sandbox provider."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from payment_context import Crash, Desk

from queue_worker import App
from queue_worker.errors import CallRefused, ConfigError, InvalidPayload, LeaseLost, Reject, Retry, Unavailable
from queue_worker.processor import Processor
from queue_worker.processors.payment_providers import CannotTell, Charge, OutcomeUnknown, Result, SandboxProvider
from queue_worker.processors.payments import PaymentsConfig, make_processor
from tests.helpers import running, wait_until

pytest_plugins = ["payment_fixtures"]

CONFIG: dict[str, Any] = {"source": "public.payment_source", "result": "public.payment_result"}


@pytest.fixture
def sandbox() -> Processor:
    return make_processor(PaymentsConfig(**CONFIG))


def charges(desk: Desk) -> list[dict[str, Any]]:
    return desk.query("select * from queue_worker_data.sandbox_charges where status = 'succeeded'")


def set_source(desk: Desk, columns: str) -> None:
    desk.query(
        "create or replace function public.payment_source(id text)"
        " returns table (amount_minor bigint, currency text, account text, key text) language sql as"
        f" $$ select {columns} from public.payments p where p.id = payment_source.id::bigint $$"
    )


def test_a_row_is_charged_and_told(desk: Desk, sandbox: Processor) -> None:
    order = desk.order(1250, "eur", "ann")
    assert desk.run(sandbox) is None
    (charge,) = charges(desk)
    (entry,) = desk.ledger()
    row = desk.payment(order)
    assert (charge["amount_minor"], charge["currency"], charge["account"]) == (1250, "EUR", "ann")
    assert (row["status"], row["provider_id"], row["error"]) == ("succeeded", charge["id"], None)
    assert (entry["key"], entry["state"]) == (f"payment:{order}:charge", "succeeded")
    assert entry["provider_id"] == charge["id"]
    assert desk.messages() == []
    assert desk.note() == {"payment": str(order), "amount": 1250, "currency": "EUR", "status": "succeeded"}


def test_the_real_worker_charges_tells_and_archives(desk: Desk, dsn: str, sandbox: Processor) -> None:
    app = App(builtins=False)
    sandbox.options = {"retry": [0.0]}
    app.add(sandbox)
    with running(dsn, app):
        orders = [desk.order(account=account) for account in ("ann", "declined", "timeout_after_charge")]
        wait_until(lambda: desk.messages() == [])
    assert [desk.payment(order)["status"] for order in orders] == ["succeeded", "failed", "succeeded"]
    assert sorted(entry["attempts"] for entry in desk.ledger()) == [1, 1, 2]
    assert [charge["calls"] for charge in charges(desk)] == [1, 1]
    assert desk.query("select count(*) from pgmq.a_payments") == [{"count": 3}]


def test_amount_currency_and_account_come_from_the_row_never_from_the_message(desk: Desk, sandbox: Processor) -> None:
    order = desk.order(500, "USD", "ann")
    desk.query("delete from pgmq.q_payments")
    forged = {"amount_minor": 1, "currency": "JPY", "account": "mallory", "new": {"id": 99, "amount_minor": 1}}
    desk.send(json.dumps({"id": order, "schema": "x", "table": "y", "op": "INSERT", "old": None, **forged}))
    assert desk.run(sandbox) is None
    (charge,) = charges(desk)
    assert (charge["amount_minor"], charge["currency"], charge["account"]) == (500, "USD", "ann")


def test_a_second_message_for_the_row_does_not_charge_again(desk: Desk, sandbox: Processor) -> None:
    order = desk.order()
    desk.send(json.dumps({"id": str(order)}))
    assert desk.run(sandbox) is None
    desk.query("update public.payments set status = 'pending', provider_id = null")
    assert desk.run(sandbox) is None
    (charge,) = charges(desk)
    assert charge["calls"] == 1
    assert desk.payment(order)["provider_id"] == charge["id"]
    assert desk.messages() == []


def test_a_decline_is_final_and_handled(desk: Desk, sandbox: Processor) -> None:
    order = desk.order(account="declined")
    assert desk.run(sandbox) is None
    row = desk.payment(order)
    assert row["status"] == "failed"
    assert row["error"].startswith("card_declined")
    assert desk.ledger()[0]["state"] == "failed"
    assert (charges(desk), desk.messages()) == ([], [])
    desk.send(json.dumps({"id": order}))
    assert desk.run(sandbox) is None
    assert desk.query("select calls from queue_worker_data.sandbox_charges") == [{"calls": 1}]


def test_fails_twice_then_succeeds_with_one_charge(desk: Desk, sandbox: Processor) -> None:
    order = desk.order(account="fails_twice")
    for attempt in (1, 2):
        error = desk.run(sandbox, attempt)
        assert isinstance(error, Retry)
        assert "503" in error.reason
        assert desk.ledger()[0]["state"] == "unknown"
        assert desk.payment(order)["status"] == "pending"
    assert desk.run(sandbox, 3) is None
    assert len(charges(desk)) == 1
    assert desk.ledger()[0]["attempts"] == 3


def test_a_lost_answer_is_asked_for_not_charged_again(desk: Desk, sandbox: Processor) -> None:
    order = desk.order(account="timeout_after_charge")
    assert isinstance(desk.run(sandbox), Retry)
    assert (desk.ledger()[0]["state"], desk.note()["status"]) == ("unknown", "unknown")
    assert desk.run(sandbox, 2) is None
    (charge,) = charges(desk)
    assert charge["calls"] == 1
    assert desk.payment(order)["provider_id"] == charge["id"]


def test_without_an_outcome_the_last_attempt_leaves_it_to_a_person(desk: Desk, sandbox: Processor) -> None:
    desk.order(account="always_fails")
    assert isinstance(desk.run(sandbox, 5), Retry)
    error = desk.run(sandbox, 6)
    assert isinstance(error, Reject)
    assert error.reason.startswith("unknown_outcome: payment 1:")
    assert desk.ledger()[0]["state"] == "unknown"


def test_a_person_resolves_an_unknown_payment_and_redrives(desk: Desk, sandbox: Processor) -> None:
    order = desk.order(account="always_fails")
    assert isinstance(desk.run(sandbox, 6), Reject)
    desk.query("select queue_worker.payment_finish(%s, 'succeeded', 'bank-4711', null)", f"payment:{order}:charge")
    assert desk.run(sandbox) is None
    assert desk.payment(order)["provider_id"] == "bank-4711"
    assert desk.query("select calls from queue_worker_data.sandbox_charges") == [{"calls": 1}]


def test_a_rate_limit_is_waited_for(desk: Desk, sandbox: Processor) -> None:
    desk.order(account="rate_limited")
    error = desk.run(sandbox)
    assert isinstance(error, Unavailable)
    assert error.delay == 1.0
    assert desk.run(sandbox, 2) is None
    assert len(charges(desk)) == 1


def test_a_crash_between_charge_and_finish_charges_once(desk: Desk, sandbox: Processor) -> None:
    order = desk.order()
    desk.context.crash = True
    assert isinstance(desk.run(sandbox), Crash)
    assert desk.ledger()[0]["state"] == "reserved"
    assert desk.payment(order)["status"] == "pending"
    desk.context.crash = False
    assert desk.run(sandbox) is None
    (charge,) = charges(desk)
    assert charge["calls"] == 1
    assert desk.payment(order)["status"] == "succeeded"
    assert (desk.ledger()[0]["state"], desk.ledger()[0]["attempts"]) == ("succeeded", 2)


def test_a_failing_result_function_leaves_nothing_half_done(desk: Desk, sandbox: Processor) -> None:
    order = desk.order()
    desk.query("alter table public.payments add constraint no_result check (status = 'pending')")
    assert isinstance(desk.run(sandbox), CallRefused)
    (entry,) = desk.ledger()
    assert (entry["state"], entry["provider_id"]) == ("unknown", None)
    assert "could not be recorded" in entry["error"]
    assert charges(desk)[0]["id"] in entry["error"]
    assert desk.payment(order)["status"] == "pending"
    assert len(desk.messages()) == 1
    desk.query("alter table public.payments drop constraint no_result")
    assert desk.run(sandbox, 2) is None
    assert (charges(desk)[0]["calls"], desk.payment(order)["status"]) == (1, "succeeded")
    assert desk.ledger()[0]["error"] is None


def test_a_message_that_was_lost_meanwhile_records_nothing(desk: Desk, sandbox: Processor) -> None:
    order = desk.order()

    def lose(function: str) -> None:
        if function == "queue_worker.sandbox_act":
            desk.query("delete from pgmq.q_payments")

    desk.context.after_call = lose
    assert isinstance(desk.run(sandbox), LeaseLost)
    assert (desk.ledger()[0]["state"], desk.payment(order)["status"]) == ("reserved", "pending")


def test_a_stopped_run_does_not_begin_a_charge(desk: Desk, sandbox: Processor) -> None:
    desk.order()
    desk.context.is_cancelled = True
    assert isinstance(desk.run(sandbox), Retry)
    assert desk.query("select 1 from queue_worker_data.sandbox_charges") == []


@pytest.mark.parametrize("change", ["amount_minor = 9999", "currency = 'USD'", "account = 'mallory'"])
def test_a_key_used_with_other_values_is_refused(desk: Desk, sandbox: Processor, change: str) -> None:
    order = desk.order()
    assert desk.run(sandbox) is None
    desk.query(f"update public.payments set {change}")
    desk.send(json.dumps({"id": order}))
    error = desk.run(sandbox)
    assert isinstance(error, Reject)
    assert error.reason.startswith("key_reuse: ")
    assert f"payment:{order}:charge" not in error.reason
    assert len(charges(desk)) == 1
    assert desk.ledger()[0]["amount_minor"] == 1250


def test_one_key_for_two_rows_charges_the_first_only(desk: Desk, sandbox: Processor) -> None:
    set_source(desk, "p.amount_minor, p.currency, p.account, 'payment:order-1:charge'")
    desk.order()
    desk.order()
    assert desk.run(sandbox) is None
    error = desk.run(sandbox)
    assert isinstance(error, Reject)
    assert error.reason.startswith("key_reuse: ")
    assert len(charges(desk)) == 1


def test_what_the_sandbox_did_does_not_count_for_another_provider(desk: Desk, sandbox: Processor) -> None:
    class Other(SandboxProvider):
        name = "other"

    order = desk.order()
    assert desk.run(sandbox) is None
    desk.send(json.dumps({"id": order}))
    error = desk.run(make_processor(PaymentsConfig(**CONFIG, provider="other"), Other))
    assert isinstance(error, Reject)
    assert error.reason.startswith("key_reuse: ")


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ("-5::bigint, 'EUR', 'ann', 'k'", "invalid_amount"),
        ("0::bigint, 'EUR', 'ann', 'k'", "invalid_amount"),
        ("null::bigint, 'EUR', 'ann', 'k'", "invalid_amount"),
        ("1000001::bigint, 'EUR', 'ann', 'k'", "invalid_amount"),
        ("9223372036854775807::bigint, 'EUR', 'ann', 'k'", "invalid_amount"),
        ("1::bigint, 'XXX', 'ann', 'k'", "invalid_currency"),
        ("1::bigint, 'EURO', 'ann', 'k'", "invalid_currency"),
        ("1::bigint, 'E R', 'ann', 'k'", "invalid_currency"),
        ("1::bigint, null, 'ann', 'k'", "invalid_currency"),
        ("1::bigint, 'EUR', '', 'k'", "invalid_account"),
        ("1::bigint, 'EUR', null, 'k'", "invalid_account"),
        ("1::bigint, 'EUR', repeat('a', 256), 'k'", "invalid_account"),
        ("1::bigint, 'EUR', E'a\\nb', 'k'", "invalid_account"),
        ("1::bigint, 'EUR', 'ann', ''", "invalid_key"),
        ("1::bigint, 'EUR', 'ann', '  '", "invalid_key"),
        ("1::bigint, 'EUR', 'ann', null", "invalid_key"),
        ("1::bigint, 'EUR', 'ann', repeat('k', 501)", "invalid_key"),
    ],
)
def test_a_hostile_row_is_refused_before_anything_happens(
    desk: Desk, sandbox: Processor, columns: str, reason: str
) -> None:
    set_source(desk, columns)
    desk.order()
    error = desk.run(sandbox)
    assert isinstance(error, Reject)
    assert error.reason.split(":")[0] == reason
    assert desk.ledger() == []
    assert desk.query("select 1 from queue_worker_data.sandbox_charges") == []


def test_an_amount_that_is_not_an_integer_is_refused(desk: Desk, sandbox: Processor) -> None:
    desk.query("drop function public.payment_source")
    desk.query(
        "create function public.payment_source(id text)"
        " returns table (amount_minor numeric, currency text, account text, key text)"
        " language sql as $$ select 12.50, 'EUR', 'ann', 'k' $$"
    )
    desk.order()
    error = desk.run(sandbox)
    assert isinstance(error, Reject)
    assert error.reason.startswith("invalid_amount: ")


def test_a_turkish_currency_does_not_fold_into_an_allowed_one(desk: Desk) -> None:
    desk.order(currency="ınr")
    error = desk.run(make_processor(PaymentsConfig(**CONFIG, currencies=("INR",))))
    assert isinstance(error, Reject)
    assert error.reason.startswith("invalid_currency: ")


@pytest.mark.parametrize("payload", ['{"id": 4711}', '{"id": "4711"}', '{"id": "not a number"}', '{"id": "1; drop"}'])
def test_a_row_that_is_not_there_is_a_dead_letter(desk: Desk, sandbox: Processor, payload: str) -> None:
    desk.send(payload)
    error = desk.run(sandbox)
    assert isinstance(error, Reject)
    assert error.reason.startswith("not_found: ")


def test_an_id_that_the_source_cannot_cast_is_a_dead_letter(desk: Desk, sandbox: Processor) -> None:
    set_source(desk, "1::bigint, 'EUR', 'ann', 'k'")
    desk.send('{"id": "seven"}')
    error = desk.run(sandbox)
    assert isinstance(error, Reject)
    assert error.reason.startswith("not_found: ")


def test_two_rows_for_one_id_are_refused(desk: Desk, sandbox: Processor) -> None:
    desk.query(
        "create or replace function public.payment_source(id text)"
        " returns table (amount_minor bigint, currency text, account text, key text) language sql as"
        " $$ select n, 'EUR', 'ann', 'k' from generate_series(1::bigint, 2) n $$"
    )
    desk.order()
    error = desk.run(sandbox)
    assert isinstance(error, Reject)
    assert error.reason.startswith("ambiguous: ")


@pytest.mark.parametrize(
    "payload",
    [
        "{}",
        "[]",
        '"7"',
        '{"id": null}',
        '{"id": true}',
        '{"id": 1.5}',
        '{"id": ""}',
        '{"id": {"a": 1}}',
        '{"id": "a\\u0000b"}',
        '{"id": "1", "key": 5}',
        '{"id": "' + "9" * 201 + '"}',
    ],
)
def test_a_payload_without_a_usable_id_is_invalid(sandbox: Processor, payload: str) -> None:
    with pytest.raises(InvalidPayload):
        sandbox.parse(payload)


def test_the_key_of_a_message_must_be_the_key_of_the_row(desk: Desk, sandbox: Processor) -> None:
    order = desk.order()
    desk.query("delete from pgmq.q_payments")
    desk.send(json.dumps({"id": order, "key": "payment:1:another"}))
    error = desk.run(sandbox)
    assert isinstance(error, Reject)
    assert error.reason.startswith("key_mismatch: ")
    desk.query("delete from pgmq.q_payments")
    desk.send(json.dumps({"id": order, "key": f"payment:{order}:charge"}))
    assert desk.run(sandbox) is None


@pytest.mark.parametrize("name", ["source", "result"])
def test_a_missing_setting_waits_with_a_line_that_names_it(desk: Desk, name: str) -> None:
    desk.order()
    error = desk.run(make_processor(PaymentsConfig(**{**CONFIG, name: ""})))
    assert isinstance(error, Retry)
    assert f"QUEUE_WORKER_PAYMENTS_{name.upper()}" in error.reason
    assert desk.ledger() == []


@pytest.mark.parametrize("name", ["source", "result"])
def test_a_function_that_is_not_there_waits_with_a_line_that_names_it(desk: Desk, name: str) -> None:
    desk.order()
    error = desk.run(make_processor(PaymentsConfig(**{**CONFIG, name: "shop.nothing"})))
    assert isinstance(error, Retry)
    assert f"QUEUE_WORKER_PAYMENTS_{name.upper()} names shop.nothing" in error.reason
    assert desk.run(make_processor(PaymentsConfig(**CONFIG)), 2) is None
    assert charges(desk)[0]["calls"] == 1


def test_two_runs_of_one_payment_at_once_charge_once(desk: Desk, sandbox: Processor) -> None:
    """A lease that ran out: the second worker starts while the first is inside the provider's call."""
    order = desk.order()
    inside, leave = threading.Event(), threading.Event()

    def pause(function: str) -> None:
        if function == "queue_worker.sandbox_act" and not inside.is_set():
            inside.set()
            assert leave.wait(20)

    desk.context.after_call = pause
    outcomes: list[BaseException | None] = []
    first = threading.Thread(target=lambda: outcomes.append(desk.run(sandbox)))
    first.start()
    assert inside.wait(20)
    assert desk.run(sandbox) is None
    leave.set()
    first.join(20)
    assert isinstance(outcomes[0], LeaseLost)
    (charge,) = charges(desk)
    assert desk.payment(order)["provider_id"] == charge["id"]


class Blind:
    """A provider that cannot look everything up; remembers keys for `key_lifetime` seconds."""

    name = "blind"

    def __init__(self, key_lifetime: float | None) -> None:
        self.key_lifetime = key_lifetime
        self.calls = 0

    def charge(self, charge: Charge) -> Result:
        self.calls += 1
        if self.calls == 1:
            raise OutcomeUnknown("no answer")
        return Result("succeeded", "blind-1")

    def find(self, charge: Charge) -> Result | None:
        raise CannotTell("too many payments")

    def close(self) -> None: ...


def test_a_blind_provider_is_repeated_while_it_remembers_the_key(desk: Desk) -> None:
    provider = Blind(86_400.0)
    processor = make_processor(PaymentsConfig(**CONFIG), lambda call: provider)
    desk.order()
    assert isinstance(desk.run(processor), Retry)
    desk.query("update queue_worker_data.payment_ledger set created_at = now() - interval '25 hours'")
    assert isinstance(desk.run(processor, 2), Retry)
    assert provider.calls == 1
    desk.query("update queue_worker_data.payment_ledger set created_at = now() - interval '23 hours'")
    assert desk.run(processor, 3) is None
    assert provider.calls == 2


def test_final_states_of_the_ledger_never_change(desk: Desk, sandbox: Processor) -> None:
    order = desk.order()
    assert desk.run(sandbox) is None
    key = f"payment:{order}:charge"
    assert desk.query("select queue_worker.payment_unknown(%s, 'late')", key) == [{"payment_unknown": "succeeded"}]
    for state, name, sqlstate in (("failed", key, "QWP03"), ("succeeded", "no", "QWP02"), ("unknown", key, "22023")):
        arguments = {"key": name, "state": state, "provider_id": None, "error": None}
        with pytest.raises(CallRefused) as refused:
            desk.context.call("queue_worker.payment_finish", arguments)
        assert refused.value.sqlstate == sqlstate
    assert desk.ledger()[0]["error"] is None


def test_the_tables_have_row_level_security_and_the_functions_a_fixed_path(desk: Desk) -> None:
    open_tables = desk.query(
        "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'r'"
        " and not c.relrowsecurity and c.relname in ('payment_ledger', 'sandbox_charges', 'payments')"
        " and n.nspname in ('queue_worker_data', 'public')"
    )
    loose = desk.query(
        "select p.proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace"
        " where p.proname ~ '^(payment|sandbox)_' and n.nspname in ('queue_worker', 'public')"
        " and (p.prosecdef or p.proconfig is distinct from array['search_path=\"\"'])"
    )
    assert (open_tables, loose) == ([], [])


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"source": "payment_source"}, "PAYMENTS_SOURCE"),
        ({"result": "a.b; drop table x"}, "PAYMENTS_RESULT"),
        ({"currencies": ()}, "PAYMENTS_CURRENCIES"),
        ({"currencies": ("EURO",)}, "PAYMENTS_CURRENCIES"),
        ({"max_minor": 0}, "PAYMENTS_MAX_MINOR"),
        ({"provider": "paypal"}, "PAYMENTS_PROVIDER"),
        ({"provider": "stripe"}, "STRIPE_API_KEY"),
        ({"provider": "stripe", "stripe_api_key": "pk_test_abc"}, "STRIPE_API_KEY"),
        ({"provider": "stripe", "stripe_api_key": "sk_test_abc", "currencies": ("EUR", "ISK")}, "ISK"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word) as refused:
        make_processor(PaymentsConfig(**values))
    assert "abc" not in str(refused.value)


def test_the_processor_shows_no_secret() -> None:
    config = PaymentsConfig(**CONFIG, provider="stripe", stripe_api_key="sk_test_hidden")
    processor = make_processor(config)
    charge = Charge("payment:1:secret", "1", 1, "EUR", "account-secret")
    assert "hidden" not in repr(config) + repr(processor)
    assert "secret" not in repr(charge)
    assert (processor.queue, processor.builtin) == ("payments", True)
