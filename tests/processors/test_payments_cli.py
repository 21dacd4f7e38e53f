"""`queue-worker payments` as a program, on payments that stay unknown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from payment_context import Desk

from queue_worker.errors import Reject, Retry
from queue_worker.processor import Processor
from queue_worker.processors.payments import PaymentsConfig, make_processor
from tests.blackbox.program import Done, Program

pytest_plugins = ["payment_fixtures"]


@pytest.fixture
def program(dsn: str) -> Program:
    return Program(
        DATABASE_URL=dsn,
        QUEUE_WORKER_PAYMENTS_PROVIDER="sandbox",
        QUEUE_WORKER_PAYMENTS_SOURCE="public.payment_source",
        QUEUE_WORKER_PAYMENTS_RESULT="public.payment_result",
    )


@pytest.fixture
def sandbox() -> Processor:
    return make_processor(PaymentsConfig(source="public.payment_source", result="public.payment_result"))


def fails(program: Program, *arguments: str) -> Done:
    """Run a command that is a person's mistake: exit code 2 and one line."""
    done = program(*arguments)
    assert done.code == 2
    return done


def bury(desk: Desk, reason: str = "unknown_outcome") -> None:
    """Make the oldest message a dead letter, as the worker does after Reject."""
    row = desk.messages()[0]
    desk.query(
        "select queue_worker_data.bury('payments', %s, %s, %s, 'dead', 'rejected', %s, '')",
        row["msg_id"],
        row["read_ct"],
        row["enqueued_at"],
        reason,
    )


def unknown(desk: Desk, sandbox: Processor, account: str = "always_fails") -> str:
    """A payment whose outcome stays unknown and whose message is a dead letter; returns its key."""
    order = desk.order(account=account)
    assert isinstance(desk.run(sandbox, 6), Reject)
    bury(desk)
    return f"payment:{order}:charge"


def test_list_shows_all_and_unknown_only_those_without_an_outcome(
    desk: Desk, program: Program, sandbox: Processor
) -> None:
    assert program.ok("payments", "list").out == "there are no payments\n"
    desk.order()
    assert desk.run(sandbox) is None
    assert program.ok("payments", "list", "--unknown").out == "no payment is without an outcome\n"
    key = unknown(desk, sandbox)
    [one] = program.ok("payments", "list", "--unknown", "--json").json
    assert (one["key"], one["state"], one["amount_minor"], one["action"]) == (key, "unknown", 1250, "charge")
    assert len(program.ok("payments", "list", "--json").json) == 2
    assert key in program.ok("payments", "list", "--unknown").out


def test_show_tells_where_the_message_is_and_what_the_provider_says(
    desk: Desk, program: Program, sandbox: Processor
) -> None:
    key = unknown(desk, sandbox)
    shown = program.ok("payments", "show", key, "--ask", "--json").json
    assert (shown["key"], shown["state"], shown["message"]) == (key, "unknown", "1: dead")
    assert shown["provider_says"] == "it has not acted on this key"
    assert "provider_says" not in program.ok("payments", "show", key, "--json").json
    assert "unknown" in program.ok("payments", "show", key).out
    assert "no payment has the key 'nope'" in fails(program, "payments", "show", "nope").err


def test_a_resolved_payment_ends_its_dead_letter(desk: Desk, program: Program, sandbox: Processor) -> None:
    key = unknown(desk, sandbox)
    told = program.ok("payments", "resolve", key, "failed", "--note", "the bank says no").out
    assert "the provider says: it has not acted on this key" in told
    assert "recorded as failed; its dead letter was sent again" in told
    assert desk.query("select 1 from queue_worker_data.dead_letters") == []
    assert desk.run(sandbox) is None
    row = desk.payment(1)
    assert (row["status"], row["error"], desk.messages()) == ("failed", "the bank says no", [])
    [audit] = desk.query("select detail from queue_worker.audit where action = 'resolve_payment'")
    assert (audit["detail"]["key"], audit["detail"]["before"], audit["detail"]["note"]) == (
        key,
        "unknown",
        "the bank says no",
    )


def test_the_provider_is_asked_first_and_is_not_contradicted_by_mistake(
    desk: Desk, program: Program, sandbox: Processor
) -> None:
    order = desk.order(account="timeout_after_charge")
    assert isinstance(desk.run(sandbox), Retry)
    key = f"payment:{order}:charge"
    refused = fails(program, "payments", "resolve", key, "failed")
    assert "the provider says otherwise (succeeded (sandbox_" in refused.err
    assert desk.ledger()[0]["state"] == "unknown"
    answer = program.ok("payments", "resolve", key, "succeeded", "--json").json
    assert answer["state"] == "succeeded"
    assert desk.ledger()[0]["provider_id"].startswith("sandbox_")
    assert desk.run(sandbox) is None
    assert desk.payment(order)["status"] == "succeeded"


def test_who_knows_better_than_the_provider_says_force(desk: Desk, program: Program, sandbox: Processor) -> None:
    key = unknown(desk, sandbox)
    assert "add --force" in fails(program, "payments", "resolve", key, "succeeded").err
    program.ok("payments", "resolve", key, "succeeded", "--force", "--provider-id", "bank-4711")
    assert desk.run(sandbox) is None
    assert desk.payment(1)["provider_id"] == "bank-4711"
    assert "already recorded as succeeded" in program.ok("payments", "resolve", key, "succeeded", "--force").out
    assert "the opposite of failed" in fails(program, "payments", "resolve", key, "failed", "--force").err


def test_a_message_that_waits_for_its_retry_becomes_due(desk: Desk, program: Program, sandbox: Processor) -> None:
    order = desk.order(account="always_fails")
    assert isinstance(desk.run(sandbox), Retry)
    row = desk.query("select msg_id, read_ct, enqueued_at from queue_worker.claim('payments', 1, 60)")[0]
    desk.query(
        "select queue_worker.settle('payments', other_ids => %s, other_cts => %s, other_ats => %s,"
        " kinds => '{failed}', delays => '{3600}', reasons => '{null}', errors => '{x}')",
        [row["msg_id"]],
        [row["read_ct"]],
        [row["enqueued_at"]],
    )
    told = program.ok("payments", "resolve", f"payment:{order}:charge", "failed").out
    assert "its message runs now" in told
    assert desk.query("select 1 from pgmq.q_payments where vt <= clock_timestamp()") != []


def test_a_payment_that_a_worker_is_at_is_left_alone(desk: Desk, program: Program, sandbox: Processor) -> None:
    order = desk.order(account="always_fails")
    assert isinstance(desk.run(sandbox), Retry)
    desk.query("select queue_worker.claim('payments', 1, 60)")
    refused = fails(program, "payments", "resolve", f"payment:{order}:charge", "failed")
    assert "a worker is at this payment right now" in refused.err
    assert desk.ledger()[0]["state"] == "unknown"


def test_a_wrong_outcome_is_a_mistake_of_one_line(desk: Desk, program: Program) -> None:
    assert "say succeeded or failed, not 'maybe'" in fails(program, "payments", "resolve", "k", "maybe").err


def test_the_commands_of_the_page_run_as_they_stand_there(desk: Desk, program: Program, sandbox: Processor) -> None:
    page = (Path(__file__).parents[2] / "docs" / "processors.md").read_text()
    [block] = [one for one in re.findall(r"```sh\n(.*?)```", page, re.S) if "payments resolve" in one]
    desk.query("alter table public.payments alter column id restart with 42")
    assert unknown(desk, sandbox) == "payment:42:charge"
    for line in block.splitlines():
        name, *arguments = shlex.split(line)
        assert name == "queue-worker"
        program.ok(*arguments)
    assert desk.ledger()[0]["error"] == "not in the bank's statement"
