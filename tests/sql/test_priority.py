"""Priority: higher first, at no cost where nobody uses it, whatever stands in the headers."""

from __future__ import annotations

import json

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.sql.engine import Engine


def ids(engine: Engine, count: int = 1) -> list[int]:
    return [row.msg_id for row in engine.claim(count) if row.kind == "job"]


def has_lane(engine: Engine) -> bool:
    return bool(engine.value("select has_priority from queue_worker_data.queues where queue = %s", engine.queue))


def test_higher_priority_is_claimed_first_and_due_time_decides_within_a_level(engine: Engine) -> None:
    low = engine.send()
    five = engine.send(headers={"priority": 5})
    hundred = engine.send(headers={"priority": 100})
    five_too = engine.send(headers={"priority": 5})
    assert [ids(engine)[0] for _ in range(4)] == [hundred, five, five_too, low]


def test_one_claim_takes_from_several_levels_and_fills_up_with_the_rest(engine: Engine) -> None:
    plain = [engine.send() for _ in range(3)]
    high = [engine.send(headers={"priority": level}) for level in (1, 50, 7)]
    assert sorted(ids(engine, 5)) == sorted([*high, *plain[:2]])


def test_what_is_delayed_or_in_flight_in_a_high_level_holds_up_no_lower_one(engine: Engine) -> None:
    running = engine.send(headers={"priority": 9})
    assert ids(engine) == [running]
    delayed = engine.send(headers={"priority": 9})
    engine.rows("update pgmq.q_QUEUE set vt = now() + interval '1 h' where msg_id = %s", delayed)
    low = engine.send(headers={"priority": 1})
    assert ids(engine, 5) == [low]


def test_a_message_that_plain_pgmq_sent_with_a_priority_opens_the_lane(engine: Engine) -> None:
    engine.send()
    assert not has_lane(engine)
    engine.send(headers={"priority": 3})
    assert has_lane(engine)


def test_a_retry_keeps_its_place_by_priority(engine: Engine) -> None:
    high = engine.send(headers={"priority": 9})
    engine.send()
    receipt = engine.take_one()
    assert engine.settle(others=[(receipt, "failed", 0, "", "boom")]) == {}
    (row,) = engine.claim(1)
    assert (row.msg_id, row.failures) == (high, 1)


def test_a_suspect_of_high_priority_that_must_wait_does_not_hold_up_the_others(engine: Engine) -> None:
    suspects = [engine.send(headers={"priority": 9}) for _ in range(3)]
    engine.take(3)
    engine.age(*suspects)
    plain = engine.send()
    rows = engine.claim(3, suspects=0)
    assert [row.msg_id for row in rows if row.kind == "job"] == [plain]
    assert "suspect" in [row.kind for row in rows]


HOSTILE = [
    {"priority": "high"},
    {"priority": None},
    {"priority": -5},
    {"priority": 1e300},
    {"priority": [9]},
    {"priority": {"a": 1}},
    {"priority": True},
    {"group_key": None},
    {"group_key": 5},
    {"group_key": ["x"]},
    {"group_key": "x" * 5000},
    {"expires_at": "never"},
    {"expires_at": 5},
    {"expires_at": "99999-01-01"},
    {"batch": "x", "max_attempts": "many"},
    ["priority", "group_key", "expires_at"],
    "priority",
    "group_key",
    5,
    None,
]


@pytest.mark.parametrize("ordered", [False, True])
def test_hostile_headers_are_claimed_and_settled_like_any_other(engine: Engine, ordered: bool) -> None:
    engine.rows("select queue_worker.create_queue('work', ordered => %s)", ordered)
    sent = {engine.send(headers=headers) for headers in HOSTILE}
    seen: set[int] = set()
    for _ in range(len(HOSTILE) + 1):
        receipts = engine.take(50)
        seen |= {one[0] for one in receipts}
        assert engine.settle(receipts) == {}
    assert seen == sent
    assert engine.count("archive") == len(sent)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["priority", "group_key", "expires_at", "batch", "unique_key", "key", "max_attempts"])


@hypothesis_settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=60)
@given(st.dictionaries(NAMES, JSON, max_size=4) | JSON)
def test_no_header_makes_a_claim_or_a_settle_fail(engine: Engine, headers: object) -> None:
    text = json.dumps(headers)
    try:
        sent = engine.value("select pgmq.send('work', '{}'::jsonb, %s::jsonb)", text)
    except psycopg.DataError:
        return  # Postgres itself does not take it as JSON
    receipts = engine.take(10)
    assert [one[0] for one in receipts] == [sent]
    assert engine.settle(receipts) == {}
