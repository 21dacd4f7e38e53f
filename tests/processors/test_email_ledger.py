"""The ledger's SQL functions by themselves."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from email_context import Context, Mailer
from smtp_server import SmtpServer

from queue_worker.broker import DatabaseContext
from queue_worker.errors import CallRefused
from queue_worker.message import Message, Receipt
from queue_worker.processor import Job
from queue_worker.transport.transactions import TransactionPool

pytest_plugins = ["email_fixtures"]

A, B = "a@example.com", "b@example.com"


def reserve(context: Context, *recipients: str, key: str = "k", digest: str = "h", owner: Any = "email:1") -> list[str]:
    params = {"key": key, "request_hash": digest, "recipients": list(recipients or (A, B)), "owner": owner}
    rows = context.call("queue_worker.mail_reserve", params)
    return [row["state"] for row in sorted(rows, key=lambda row: row["recipient"])]


def record(context: Context, **states: str) -> int:
    results = [{"recipient": {"a": A, "b": B}[name], "state": state, "reply": state} for name, state in states.items()]
    return int(context.call("queue_worker.mail_record", {"key": "k", "results": results})[0]["mail_record"])


def test_states_go_their_way(context: Context) -> None:
    assert reserve(context) == ["reserved", "reserved"]
    assert record(context, a="sent", b="deferred") == 2
    assert reserve(context) == ["sent", "reserved"]
    assert reserve(context) == ["sent", "unknown"]  # the run before has recorded nothing: it is dead
    assert reserve(context) == ["sent", "unknown"]
    assert record(context, b="bounced") == 1
    assert reserve(context) == ["sent", "bounced"]


def test_a_late_result_takes_nothing_back(context: Context) -> None:
    reserve(context)
    record(context, a="sent", b="bounced")
    assert record(context, a="deferred", b="unknown") == 0
    assert record(context, a="bounced", b="sent") == 1
    assert context.states("k") == {A: "sent", B: "sent"}


def test_a_living_run_of_another_message_makes_the_mail_busy(context: Context) -> None:
    reserve(context)
    assert reserve(context, owner="email:2") == ["busy", "busy"]
    record(context, a="sent", b="deferred")
    assert reserve(context, owner="email:2") == ["sent", "reserved"]
    context.query("update queue_worker_data.mails set updated_at = now() - interval '3 minutes'")
    assert reserve(context, owner="email:1") == ["sent", "unknown"]


def test_a_key_belongs_to_one_mail(context: Context) -> None:
    reserve(context)
    for state in ("reserved", "unknown", "sent"):
        context.query("update queue_worker_data.mails set state = %s", state)
        with pytest.raises(CallRefused) as caught:
            reserve(context, digest="other")
        assert caught.value.sqlstate == "QW409"
    context.query("update queue_worker_data.mails set state = 'bounced', owner = null")
    assert reserve(context, A, digest="other") == ["reserved"]
    assert context.states("k") == {A: "reserved"}


def test_of_many_first_reservations_one_wins(context: Context) -> None:
    # Different recipients, so that no row of one stands in the way of another.
    def one(number: int) -> str:
        try:
            return reserve(context, f"user{number}@example.com", digest=str(number), owner=f"email:{number}")[0]
        except CallRefused as error:
            return error.sqlstate

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(one, range(8))) == ["QW409"] * 7 + ["reserved"]


def test_a_person_can_decide_what_became_of_a_mail(context: Context) -> None:
    reserve(context)
    record(context, a="unknown", b="unknown")
    resolve = "select queue_worker.mail_resolve(%s, %s, %s) as count"
    assert context.query(resolve, "k", "sent", A) == [{"count": 1}]
    assert context.query(resolve, "k", "deferred", None) == [{"count": 1}]
    assert context.query(resolve, "k", "deferred", None) == [{"count": 0}]
    assert context.states("k") == {A: "sent", B: "deferred"}
    assert reserve(context) == ["sent", "reserved"]
    assert len(context.query("select audit_id from queue_worker_data.audit where action = 'mail_resolve'")) == 3
    with pytest.raises(Exception, match="state must be sent or deferred"):
        context.query(resolve, "k", "lost", None)


def test_old_mails_are_forgotten_a_few_at_a_time(context: Context) -> None:
    for key in ("old1", "old2", "old3", "new"):
        reserve(context, A, key=key)
    context.query("update queue_worker_data.mails set first_at = now() - interval '2 days' where key like 'old%%'")
    prune = "select queue_worker.mail_prune(86400, 2) as count"
    assert [context.query(prune)[0]["count"] for _ in range(3)] == [2, 1, 0]
    assert context.query("select key from queue_worker_data.mails") == [{"key": "new"}]


def test_nothing_of_the_ledger_is_open_to_others(context: Context) -> None:
    (table,) = context.query("select relrowsecurity from pg_class where oid = 'queue_worker_data.mails'::regclass")
    assert table["relrowsecurity"]
    functions = context.query(
        "select proname, prosecdef, proconfig from pg_proc where pronamespace = 'queue_worker'::regnamespace"
        " and proname like 'mail%%'"
    )
    assert {row["proname"] for row in functions} == {"mail_reserve", "mail_record", "mail_resolve", "mail_prune"}
    assert all(row["proconfig"] == ['search_path=""'] and not row["prosecdef"] for row in functions)


def test_the_workers_own_connections_carry_what_the_processor_sends(
    dsn: str, smtp: SmtpServer, mailer: Mailer, context: Context
) -> None:
    pool = TransactionPool(lambda: dsn, pooler=False, size=1)
    try:
        worker = DatabaseContext(pool, "archive", lambda message: 30.0, lambda job: False)
        smtp.answer("RCPT", "550 5.1.1 no", to=B)
        processor = mailer()
        body = json.dumps({"to": [A, B], "subject": "s", "text": "t", "key": "k"})
        for attempt in (1, 2):
            processor.handler(Job(Message("email", Receipt(1, attempt, None), body), processor.parse(body), 6, worker))
    finally:
        pool.close()
    assert context.states("k") == {A: "sent", B: "bounced"}
    assert smtp.count(A) == 1
