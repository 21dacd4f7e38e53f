"""What producers call: send, send_batch and the trigger; and what they are told when it cannot be done."""

from __future__ import annotations

import itertools
import shutil
import uuid
from pathlib import Path

import psycopg
import pytest
from psycopg.types.json import Jsonb

from queue_worker import migrate
from tests.sql.engine import Engine

BAD_NAMES = ["", "Work", "1st", "a b", "a;drop", "a--b", "a" * 48, 'x"y', "été", None]


def test_a_bad_queue_name_is_refused_everywhere(engine: Engine) -> None:
    calls = [
        "create_queue(%s)",
        "pause(%s)",
        "resume(%s)",
        "send(%s, '{}')",
        "send_batch(%s, '[]')",
        "redrive(%s)",
        "discard(%s)",
        "messages(%s)",
        "archived(%s)",
        "message(%s, 1)",
        "claim(%s, 1, 60)",
        "prune(%s, 1)",
    ]
    for call, name in itertools.product(calls, BAD_NAMES):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="is not allowed"):
            engine.rows(f"select * from queue_worker.{call}", name)


def test_a_missing_queue_is_named_with_the_line_that_makes_it(engine: Engine) -> None:
    calls = [
        "send('nowhere', '{}')",
        "send_batch('nowhere', '[{\"payload\": {}}]')",
        "send_batch('nowhere', '[]')",
        "pause('nowhere')",
        "resume('nowhere')",
        "redrive('nowhere')",
        "discard('nowhere')",
        "messages('nowhere')",
        "archived('nowhere')",
        "message('nowhere', 1)",
    ]
    for call in calls:
        with pytest.raises(psycopg.errors.UndefinedTable, match='queue "nowhere" does not exist') as error:
            engine.rows(f"select * from queue_worker.{call}")
        assert error.value.diag.message_hint == "select queue_worker.create_queue('nowhere');"


WRONG_OPTIONS = [
    ("null", "payload"),
    ("'null'", "payload"),
    ("'5'", "payload"),
    ("'[]'", "payload"),
    ("'\"x\"'", "payload"),
    ("jsonb_build_object('x', repeat('x', 262144))", "262144"),
    ("'{}', headers => '[]'", "headers"),
    ("'{}', max_attempts => 0", "max_attempts"),
    ("'{}', retry_delay_seconds => -1", "retry_delay_seconds"),
    ("'{}', timeout_seconds => 0", "timeout_seconds"),
    ("'{}', -1", "delay_seconds"),
    ("'{}', 5, now()", "delay_seconds or run_at"),
    ("'{}', run_at => 'infinity'", "run_at"),
    ("'{}', priority => -1", "priority must be 0 to 100, not -1"),
    ("'{}', priority => 101", "priority"),
    ("'{}', group_key => ''", "group_key"),
    ("'{}', group_key => repeat('x', 201)", "group_key"),
    ("'{}', group_key => 'a'", 'group_key: queue "work" is not ordered'),
    ("'{}', expires_at => now() - interval '1 s'", "expires_at is in the past"),
    ("'{}', expires_at => '-infinity'", "expires_at"),
    ("'{}', expires_at => 'infinity'", "expires_at"),
    ("'{}', 60, expires_at => now() + interval '30 s'", "expires_at is before the message is due"),
    ("'{}', run_at => now() + interval '2 d', expires_at => now() + interval '1 d'", "expires_at"),
    ("'{}', unique_key => ''", "unique_key"),
    ("'{}', unique_key => repeat('x', 201)", "unique_key"),
    ("'{}', unique_key => 'k', unique_mode => 'skip'", "unique_mode must be keep, replace"),
    ("'{}', unique_key => 'k', unique_scope => 'ever'", "unique_scope must be waiting or active"),
    ("'{}', unique_key => 'k', unique_seconds => 0", "unique_seconds"),
    ("'{}', unique_seconds => 5", "need a unique_key"),
    ("'{}', unique_mode => 'replace'", "need a unique_key"),
    ("'{}', unique_scope => 'active'", "need a unique_key"),
]


def test_a_wrong_option_is_refused_by_name(engine: Engine) -> None:
    for arguments, word in WRONG_OPTIONS:
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=word):
            engine.rows(f"select queue_worker.send('work', {arguments})")
    assert engine.count("queue") == 0


def test_options_travel_in_the_headers_and_the_due_time(engine: Engine) -> None:
    engine.rows(
        "select queue_worker.send('work', '{\"a\": 1}', delay_seconds => 60, max_attempts => 3,"
        ' retry_delay_seconds => 0, timeout_seconds => 9, headers => \'{"key": "k"}\')'
    )
    (row,) = engine.rows("select * from queue_worker.messages('work')")
    assert row.headers == {"key": "k", "max_attempts": 3, "retry_delay_seconds": 0, "timeout_seconds": 9}
    assert (row.state, row.attempt, row.payload) == ("delayed", 1, {"a": 1})


def test_lanes_and_expiry_travel_in_the_headers(engine: Engine) -> None:
    engine.rows("update queue_worker_data.queues set ordered = true")
    engine.rows("select queue_worker_data.equip('work')")
    engine.rows(
        "select queue_worker.send('work', '{}', priority => 7, group_key => 'ann',"
        " expires_at => '2999-05-01 12:00:00.5+02')"
    )
    engine.rows("select queue_worker.send('work', '{}', priority => 0)")
    engine.rows("select queue_worker.send('work', '{}', unique_key => 'k')")
    assert [row[0] for row in engine.rows("select headers from pgmq.q_work order by msg_id")] == [
        {"priority": 7, "group_key": "ann", "expires_at": "2999-05-01T10:00:00.500000Z"},
        None,
        {"unique_key": "k"},
    ]
    assert engine.value("select has_priority from queue_worker_data.queues")


def test_an_option_beats_the_same_name_in_the_callers_headers(engine: Engine) -> None:
    named = {"priority": 1, "unique_key": "a", "max_attempts": 9, "expires_at": "never", "batch": "b", "own": [1]}
    engine.rows(
        "select queue_worker.send('work', '{}', priority => 5, unique_key => 'k', max_attempts => 2, headers => %s)",
        Jsonb(named),
    )
    batch = [{"payload": {}, "priority": 5, "max_attempts": 2, "headers": named}]
    engine.rows("select queue_worker.send_batch('work', %s)", Jsonb(batch))
    first, second = (row[0] for row in engine.rows("select headers from pgmq.q_work order by msg_id"))
    assert first == {"priority": 5, "unique_key": "k", "max_attempts": 2, "expires_at": "never", "own": [1]}
    assert second == {"priority": 5, "unique_key": "a", "max_attempts": 2, "expires_at": "never", "own": [1]}


def test_a_batch_takes_every_option_of_send(engine: Engine) -> None:
    engine.rows("update queue_worker_data.queues set ordered = true")
    options = {
        "payload": {"a": 1},
        "run_at": "2999-01-01T00:00:00Z",
        "priority": 3,
        "group_key": "g",
        "expires_at": "2999-02-01T00:00:00Z",
        "max_attempts": 4,
        "retry_delay_seconds": 5,
        "timeout_seconds": 6,
        "headers": {"h": 1},
    }
    unique = {"unique_key": "k", "unique_mode": "replace", "unique_seconds": 60, "unique_scope": "active"}
    engine.rows("select queue_worker.send_batch('work', %s)", Jsonb([options]))
    engine.rows("select queue_worker.send_batch('work', %s)", Jsonb([options | unique]))
    plain, keyed = engine.rows("select message, headers, vt from pgmq.q_work order by msg_id")
    assert plain.headers == {
        "priority": 3,
        "group_key": "g",
        "expires_at": "2999-02-01T00:00:00.000000Z",
        "max_attempts": 4,
        "retry_delay_seconds": 5,
        "timeout_seconds": 6,
        "h": 1,
    }
    assert keyed.headers == plain.headers | {"unique_key": "k"}
    assert (plain.message, plain.vt) == (keyed.message, keyed.vt)
    assert plain.vt.year == 2999


WRONG_ITEMS = [
    ({"payload": {}, "priority": 101}, "priority"),
    ({"payload": {}, "group_key": "g"}, "group_key"),
    ({"payload": {}, "expires_at": "2000-01-01"}, "expires_at"),
    ({"payload": {}, "unique_scope": "active"}, "unique_key"),
    ({"payload": {}, "unique_key": "k", "unique_mode": "no"}, "unique_mode"),
    ({"payload": {}, "unique_key": "x" * 201}, "unique_key"),
    ({"payload": {}, "unique_key": ""}, "unique_key"),
    ({"payload": {}, "prio": 1}, r'messages\[1\]: unknown option "prio"'),
    ("x", r"messages\[1\]: not an object"),
]


@pytest.mark.parametrize("good", [{"payload": {}}, {"payload": {}, "unique_key": "a"}])
def test_one_wrong_item_refuses_the_whole_batch(engine: Engine, good: dict[str, object]) -> None:
    for bad, words in WRONG_ITEMS:
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=words):
            engine.rows("select queue_worker.send_batch('work', %s)", Jsonb([good, bad]))
    assert engine.count("queue") == 0
    assert engine.value("select count(*) from queue_worker_data.unique_keys") == 0


def test_a_producer_that_may_call_send_may_still_do_so_after_the_migration(empty_dsn: str, tmp_path: Path) -> None:
    old, role = tmp_path / "old", f"producer_{uuid.uuid4().hex[:12]}"
    old.mkdir()
    for file in migrate.sql_dir().glob("00*.sql"):
        if file.name < "0012":
            shutil.copy(file, old)
    migrate.up(empty_dsn, directory=old)
    with psycopg.connect(empty_dsn, autocommit=True) as db:
        db.execute(f"create role {role}")
        for function in ("send", "send_batch"):
            db.execute(f"grant execute on function queue_worker.{function} to {role}")
        migrate.up(empty_dsn)
        allowed = (
            "select p.proname from pg_proc p where p.pronamespace = 'queue_worker'::regnamespace"
            " and has_function_privilege(%s, p.oid, 'execute') order by p.proname"
        )
        assert db.execute(allowed, [role]).fetchall() == [("send",), ("send_batch",)]
        db.execute(f"drop owned by {role} cascade")
        db.execute(f"drop role {role}")


def test_a_batch_answers_its_ids_in_order_or_sends_nothing(engine: Engine) -> None:
    batch = [{"payload": {"n": n}, "delay_seconds": 20 - n} for n in range(20)]
    ids = [row[0] for row in engine.rows("select * from queue_worker.send_batch('work', %s)", Jsonb(batch))]
    payloads = dict(engine.rows("select msg_id, (message ->> 'n')::int from pgmq.q_work"))
    assert [payloads[one] for one in ids] == list(range(20))
    for bad in ({"payload": {}, "prio": 1}, {"payload": 5}, 7, {"payload": {}, "delay_seconds": "soon"}):
        with pytest.raises(psycopg.DataError):
            engine.rows("select * from queue_worker.send_batch('work', %s)", Jsonb([{"payload": {}}, bad]))
    assert engine.count("queue") == 20


@pytest.fixture
def orders(engine: Engine) -> Engine:
    engine.rows("create table orders (id int primary key, note text)")
    return engine


def add_trigger(engine: Engine, queue: str, mode: str = "") -> None:
    arguments = f"'{queue}'" + (f", '{mode}'" if mode else "")
    engine.rows(
        "create trigger t after insert or update or delete on orders for each row"
        f" execute function queue_worker.send_row({arguments})"
    )


def test_a_trigger_of_the_wrong_form_is_told_the_right_one(orders: Engine) -> None:
    for trigger, statement in [
        ("before insert on orders for each row", "insert into orders values (1, 'a')"),
        ("after insert on orders for each statement", "insert into orders values (1, 'a')"),
        ("after insert on orders", "insert into orders values (1, 'a')"),
        ("after truncate on orders", "truncate orders"),
    ]:
        orders.rows(f"create or replace trigger t {trigger} execute function queue_worker.send_row('work')")
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"after insert or update .* for each row"):
            orders.rows(statement)
        orders.rows("drop trigger t on orders")
    assert orders.count("queue") == 0


def test_a_strict_trigger_fails_with_its_row_and_a_best_effort_one_lets_it_pass(orders: Engine) -> None:
    add_trigger(orders, "later")
    with pytest.raises(psycopg.errors.UndefinedTable, match='queue "later" does not exist'):
        orders.rows("insert into orders values (1, 'a')")
    orders.rows("drop trigger t on orders")
    add_trigger(orders, "later", "best_effort")
    orders.rows("insert into orders values (1, 'a'), (2, 'b')")
    later = Engine(orders.connection, "later").create()
    assert later.value("select queue_worker.resend_unsent('later')") == 2
    assert later.value("select count(*) from queue_worker_data.unsent") == 0
    rows = later.rows("select message from pgmq.q_later order by msg_id")
    assert [row[0]["new"] for row in rows] == [{"id": 1, "note": "a"}, {"id": 2, "note": "b"}]


def test_a_row_that_can_never_be_sent_holds_up_no_other(orders: Engine) -> None:
    add_trigger(orders, "work", "best_effort")
    orders.rows("insert into orders values (1, repeat('x', 300000))")
    orders.rows("drop trigger t on orders")
    add_trigger(orders, "later", "best_effort")
    orders.rows("insert into orders values (2, repeat('x', 300000)), (3, 'fine')")
    later = Engine(orders.connection, "later").create()
    assert [later.value("select queue_worker.resend_unsent('later', 1)") for _ in range(3)] == [0, 1, 0]
    assert later.rows(
        "select (payload -> 'id')::int as id, error like '%262144%' as why"
        " from queue_worker_data.unsent where queue = 'later'"
    ) == [(2, True)]


def test_triggers_tell_what_happened(orders: Engine) -> None:
    add_trigger(orders, "work")
    orders.rows("insert into orders values (1, 'a')")
    orders.rows("update orders set note = 'b'")
    orders.rows("delete from orders")
    seen = [row[0] for row in orders.rows("select message from pgmq.q_work order by msg_id")]
    assert [(one["op"], one["id"], one["table"]) for one in seen] == [
        ("INSERT", 1, "orders"),
        ("UPDATE", 1, "orders"),
        ("DELETE", 1, "orders"),
    ]
    assert (seen[1]["old"]["note"], seen[1]["new"]["note"]) == ("a", "b")
