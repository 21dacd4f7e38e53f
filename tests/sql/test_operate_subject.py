"""purge_subject: one person's data goes, everybody else's stays, and the audit names nobody."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import psycopg
import pytest

from tests.sql.engine import Engine
from tests.sql.test_operator import bury

ANN, BOB = "ann@example.com", "bob@example.com"


def purge(engine: Engine, key: str, max_count: int = 10_000) -> int:
    return int(engine.value("select queue_worker.purge_subject(%s, %s)", key, max_count))


def names(engine: Engine) -> str:
    """Everything that any table of ours or pgmq's holds, as one text."""
    tables = engine.rows(
        "select format('%I.%I', n.nspname, c.relname) as name from pg_class c"
        " join pg_namespace n on n.oid = c.relnamespace"
        " where c.relkind = 'r' and n.nspname in ('pgmq', 'queue_worker_data')"
    )
    return " ".join(str(engine.rows(f"select t::text as row from {table.name} t")) for table in tables)


@pytest.fixture
def full(engine: Engine) -> Engine:
    """Two people in every place: waiting, running, archived, dead, unsent, in the ledgers of mails."""
    other = Engine(engine.connection, "other").create()
    for who in (ANN, BOB):
        engine.send({"to": who})
        other.send({"deep": [{"cc": [who]}]})
        engine.send({"n": 1}, {"subject": who})
        bury(other, {"to": [who, "c@example.com"]})
        msg_id = engine.send({"archived": who})
        engine.settle(done=engine.take(20))
        assert engine.places(msg_id) == ["archive"]
        engine.send({"to": who})
        engine.settle(others=[(engine.take_one(), "failed", 0, "", f"550 {who} is unknown")])
        engine.rows(
            "insert into queue_worker_data.unsent (queue, payload, error) values ('work', %s, 'e')",
            json.dumps({"new": {"mail": who}}),
        )
        engine.rows("select * from queue_worker.mail_reserve('key', 'hash', array[%s, 'c@example.com'])", who)
    return engine


def test_nothing_of_the_person_is_left_and_all_of_the_others(full: Engine) -> None:
    before = names(full)
    assert ANN in before
    bobs = before.count(BOB)
    assert purge(full, ANN) >= 8
    after = names(full)
    assert ANN not in after
    assert after.count(BOB) == bobs
    assert purge(full, ANN) == 0
    assert full.rows("select distinct recipient from queue_worker_data.mails order by 1") == [
        (BOB,), ("c@example.com",),
    ]  # fmt: skip


def test_the_audit_holds_a_hash_of_the_key(full: Engine) -> None:
    count = purge(full, ANN)
    (row,) = full.rows("select queue, detail from queue_worker.audit where action = 'purge_subject'")
    assert row == ("*", {"count": count, "key_sha256": hashlib.sha256(ANN.encode()).hexdigest()})


def test_a_running_message_of_the_person_is_cancelled(engine: Engine, dsn: str) -> None:
    msg_id = engine.send({"to": ANN})
    held = engine.take_one()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("listen queue_worker")
        assert purge(engine, ANN) == 1
        assert [note.payload for note in connection.notifies(timeout=5, stop_after=1)] == [f"cancel work {msg_id}"]
    assert engine.settle(done=[held]) == {msg_id: "gone"}
    assert ANN not in names(engine)


def test_calls_are_bounded_and_repeated_until_nothing_is_left(engine: Engine) -> None:
    for _ in range(5):
        bury(engine, {"to": ANN})
    for _ in range(5):
        engine.send({"to": ANN})
    assert [purge(engine, ANN, 4) for _ in range(4)] == [4, 4, 2, 0]


@pytest.mark.parametrize(
    ("payload", "headers", "key"),
    [
        ({"a": "x ann y"}, None, "ann"),
        ({"ann": "key, not value"}, None, "ann"),
        ({"a": "Ann"}, {"subject": "annette"}, "ann"),
        ({"a": 7}, None, "7"),
        ([None, 1e300, "\\"], [["x"]], "$"),
        (None, 5, "@"),
    ],
)
def test_only_the_very_string_counts(engine: Engine, payload: Any, headers: Any, key: str) -> None:
    engine.send(payload, headers)
    assert purge(engine, key) == 0


@pytest.mark.parametrize("key", ["a'b", 'a"b', "$.** ? (@ == 1)", "привет", "a\\b", "x' or true --", "%s"])
def test_any_key_is_a_text_and_no_program(engine: Engine, key: str) -> None:
    engine.send({"k": [key]})
    engine.send({"k": "other"})
    assert purge(engine, key) == 1
    assert engine.count("queue") == 1


@pytest.mark.parametrize(("key", "count"), [("", 1), ("  ", 1), (None, 1), ("x", 0), ("x", -1), ("x", None)])
def test_an_empty_key_is_refused(engine: Engine, key: Any, count: Any) -> None:
    engine.send({"k": ""})
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="key must not be empty"):
        engine.rows("select queue_worker.purge_subject(%s, %s)", key, count)
    assert engine.count("queue") == 1


def test_a_name_deep_in_the_headers_counts_and_the_history_goes_along(engine: Engine) -> None:
    for who in (ANN, BOB):
        engine.send({"n": 1}, {"trace": {"user": [who]}})
        bury(engine, {"n": 1}, {"trace": who})
        engine.send({"n": 2})
        receipts = engine.take(5)
        engine.settle(others=[(one, "failed", 600, "", "no answer") for one in receipts])
    before = int(engine.value("select count(*) from queue_worker.failures"))
    assert purge(engine, ANN) == 2
    assert ANN not in names(engine)
    assert engine.value("select count(*) from queue_worker.failures") == before - 2
    assert engine.value("select count(*) from queue_worker_data.trouble") == engine.count("queue")


def test_errors_of_messages_that_are_gone_are_found_by_their_text(engine: Engine) -> None:
    for who in (ANN, BOB):
        engine.send({"id": 7})
        engine.settle(others=[(engine.take_one(), "failed", 0, "", f"550 {who} is unknown")])
        engine.settle(done=[engine.take_one()], on_success="delete")
    assert purge(engine, "550") == 0
    assert purge(engine, ANN) == 1
    assert engine.rows("select error from queue_worker.failures") == [(f"550 {BOB} is unknown",)]


def test_queues_that_pgmq_made_and_broken_ones_are_looked_at_too(engine: Engine) -> None:
    engine.rows("select pgmq.create('MixedCase'); ")
    engine.rows("select pgmq.send('MixedCase', %s)", json.dumps({"to": ANN}))
    engine.rows("select queue_worker.create_queue('broken')")
    engine.rows("drop table pgmq.q_broken")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="do not belong to queue_owner") as refused:
        purge(engine, ANN)
    engine.rows(refused.value.diag.message_hint)
    assert purge(engine, ANN) == 1
