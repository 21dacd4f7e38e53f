"""Results: what a handler answered is kept, and `result` says what became of a message."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from tests.sql.engine import Engine, Receipt


def outcome(one: Receipt, value: str | None = "") -> tuple[Any, ...]:
    return (one, "result", None, None, value)


def result(engine: Engine, msg_id: int) -> tuple[Any, ...]:
    """(state, value, reason, error)."""
    (row,) = engine.rows("select * from queue_worker.result(%s, %s)", engine.queue, msg_id)
    return tuple(row)


def done(engine: Engine, value: str = "", on_success: str = "archive") -> int:
    """Send a message, take it and settle it with a result; returns its id."""
    engine.send()
    one = engine.take_one()
    assert engine.settle(others=[outcome(one, value)], on_success=on_success) == {}
    return one[0]


@pytest.mark.parametrize("on_success", ["archive", "delete"])
def test_a_result_is_kept_with_the_settle(engine: Engine, on_success: str) -> None:
    msg_id = done(engine, '{"pages": [1, 2]}', on_success)
    assert result(engine, msg_id) == ("done", {"pages": [1, 2]}, None, None)
    assert engine.places(msg_id) == (["archive"] if on_success == "archive" else [])
    stored = engine.rows("select r.queue, r.msg_id, r.enqueued_at is null, r.value from queue_worker_data.results r")
    assert stored == [("work", msg_id, False, {"pages": [1, 2]})]


def test_without_a_value_nothing_is_stored(engine: Engine) -> None:
    for value in ("", None):
        engine.send()
        one = engine.take_one()
        assert engine.settle(others=[outcome(one, value)]) == {}
        assert result(engine, one[0]) == ("done", None, None, None)
    assert engine.value("select count(*) from queue_worker_data.results") == 0


def test_a_stale_receipt_keeps_no_result(engine: Engine) -> None:
    engine.send()
    old = engine.take_one()
    engine.age()
    new = engine.take_one(suspects=1)
    assert engine.settle(others=[outcome(old, "1")]) == {old[0]: "stale"}
    assert engine.settle(others=[outcome(new, "2")]) == {}
    assert engine.settle(others=[outcome(new, "3")]) == {old[0]: "gone"}
    assert result(engine, old[0])[:2] == ("done", 2)


def test_the_trouble_of_a_message_ends_with_its_result(engine: Engine) -> None:
    engine.send()
    engine.settle(others=[(engine.take_one(), "failed", 0, "", "e")])
    engine.settle(others=[outcome(engine.take_one(), "1")])
    assert engine.rows("select * from queue_worker_data.trouble") == []


@pytest.mark.parametrize("value", ['"a\\u0000b"', "{", "NaN", "[" * 200_000, '"\\ud800"', "1e999999"])
def test_a_value_that_jsonb_cannot_hold_is_kept_as_text_and_the_message_is_done(engine: Engine, value: str) -> None:
    engine.fill(2)
    first, second = engine.take(2)
    assert engine.settle(others=[outcome(first, value), outcome(second, "5")]) == {}
    assert result(engine, first[0])[:2] == ("done", value)
    assert result(engine, second[0])[:2] == ("done", 5)


def test_one_that_cannot_be_stored_costs_no_neighbour(engine: Engine) -> None:
    engine.fill(3)
    receipts = engine.take(3)
    engine.rows("alter table queue_worker_data.results add constraint picky check (msg_id <> 2)")
    assert engine.settle(others=[outcome(one, str(one[0])) for one in receipts]) == {2: "error"}
    assert [result(engine, n)[:2] for n in (1, 2, 3)] == [("done", 1), ("running", None), ("done", 3)]


def test_every_state_is_told_apart(engine: Engine) -> None:
    engine.fill(6)
    engine.rows("select queue_worker.send('work', '{}', 60)")
    receipts = engine.take(5)
    engine.settle(
        done=receipts[:1],
        others=[
            (receipts[1], "dead", 0, "rejected", "no"),
            (receipts[2], "failed", 60, "", "e"),
            outcome(receipts[3], "null"),
        ],
    )
    assert [result(engine, n) for n in range(1, 9)] == [
        ("done", None, None, None),
        ("dead", None, "rejected", "no"),
        ("delayed", None, None, None),
        ("done", None, None, None),
        ("running", None, None, None),
        ("waiting", None, None, None),
        ("delayed", None, None, None),
        ("unknown", None, None, None),
    ]
    # As `cancel` leaves it.
    engine.rows("select pgmq.archive('work', 6::bigint)")
    engine.rows('update pgmq.a_work set headers = \'{"cancelled_at": "2031-01-01"}\' where msg_id = 6')
    assert result(engine, 6)[0] == "cancelled"


def test_a_result_of_an_earlier_queue_is_not_taken_for_a_new_message(engine: Engine) -> None:
    done(engine, '"old"', "delete")
    assert result(engine, 1)[:2] == ("done", "old")
    engine.rows("select pgmq.drop_queue('work')")
    engine.create()
    engine.send()
    assert result(engine, 1)[:2] == ("waiting", None)
    engine.settle(done=[engine.take_one()])
    assert result(engine, 1)[:2] == ("done", None)


def keep(engine: Engine, msg_id: int, value: Any) -> None:
    engine.rows("select queue_worker.keep_result(%s, %s, %s)", engine.queue, msg_id, Jsonb(value))


@pytest.mark.parametrize("on_success", ["archive", "delete"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_result_is_kept_apart_from_the_settle(engine: Engine, on_success: str, when: str) -> None:
    engine.send()
    one = engine.take_one()
    with engine.connection.transaction():
        assert engine.hold(one)
        if when == "before":
            keep(engine, one[0], [1])
        assert engine.settle(done=[one], on_success=on_success) == {}
    if when == "after":
        keep(engine, one[0], [1])
    assert result(engine, one[0])[:2] == ("done", [1])
    keep(engine, one[0], None)
    assert result(engine, one[0])[:2] == ("done", None)
    assert engine.value("select count(*) from queue_worker_data.results") == 1


def test_a_missing_queue_is_named(engine: Engine) -> None:
    for call in ("result('nowhere', 1)", "keep_result('nowhere', 1, '1')"):
        with pytest.raises(psycopg.errors.UndefinedTable, match='queue "nowhere" does not exist'):
            engine.rows(f"select * from queue_worker.{call}")


def test_the_plain_path_runs_no_statement_more(engine: Engine) -> None:
    """A settle of done messages does not come near the tables and functions of this part."""
    engine.rows(
        "drop table queue_worker_data.results, queue_worker_data.batches, queue_worker_data.batch_counts cascade"
    )
    engine.rows("drop function queue_worker_data.settle_result, queue_worker_data.settle_one")
    engine.send({}, {"batch": "b"})
    engine.fill(3)
    assert engine.settle(done=engine.take(4)) == {}
    assert engine.count("archive") == 4


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OURS = st.sampled_from(
    [
        "priority",
        "unique_key",
        "group_key",
        "expires_at",
        "batch",
        "key",
        "redriven_from",
        "cancelled_at",
        "max_attempts",
    ]
)


def storable(value: Any) -> bool:
    """Whether jsonb can hold it: no NUL, no lone surrogates, no infinity."""
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return "\\u0000" not in text and not any(f"\\ud{digit}" in text for digit in "89abcdef")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    payload=JSON.filter(storable),
    headers=(JSON | st.dictionaries(OURS, JSON)).filter(storable),
    value=JSON,
    kind=st.sampled_from(["result", "done", "failed", "dead", "release"]),
)
def test_whatever_stands_in_a_message_it_is_sent_claimed_settled_and_looked_at(
    engine: Engine, payload: Any, headers: Any, value: Any, kind: str
) -> None:
    engine.rows("select pgmq.purge_queue('work')")
    engine.rows("select pgmq.send('work', %s::jsonb, %s::jsonb)", Jsonb(payload), Jsonb(headers))
    if isinstance(payload, dict) and isinstance(headers, dict):
        batch = Jsonb([{"payload": payload, "headers": headers}])
        engine.rows("select queue_worker.send('work', %s, headers => %s)", Jsonb(payload), Jsonb(headers))
        engine.rows(
            "select queue_worker.send('work', %s, headers => %s, unique_key => 'k')", Jsonb(payload), Jsonb(headers)
        )
        engine.rows("select queue_worker.send_batch('work', %s, 'work')", batch)
    receipts = engine.take(10)
    assert len(receipts) == engine.count("queue") > 0
    others = [(one, kind, 0, "r", json.dumps(value)) for one in receipts]
    assert (engine.settle(done=receipts) if kind == "done" else engine.settle(others=others)) == {}
    for one in receipts:
        state, kept, *_ = result(engine, one[0])
        assert state in ("done", "dead", "waiting", "cancelled")
        if kind == "result" and state == "done" and storable(value):
            # As jsonb holds it: its numbers are exact, those of Python are not.
            assert kept == engine.value("select %s::jsonb", Jsonb(value))
    engine.rows("select * from queue_worker.batches")
    engine.rows("select queue_worker_data.recount_batches('work'), queue_worker_data.prune_unique('work', 100)")
