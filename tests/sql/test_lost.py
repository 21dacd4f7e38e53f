"""Which leases are not held any more, and why."""

from __future__ import annotations

import psycopg
import pytest

from tests.sql.engine import Engine, Receipt, columns


def lost(engine: Engine, *receipts: Receipt) -> dict[int, bool]:
    rows = engine.rows(
        "select msg_id, gone from queue_worker.lost(%s, %s::bigint[], %s::int[], %s::timestamptz[])",
        engine.queue,
        *columns(receipts),
    )
    return {row[0]: row[1] for row in rows}


@pytest.fixture
def engine(db: psycopg.Connection[tuple]) -> Engine:
    return Engine(db).create()


def test_what_is_held_is_not_lost_and_nothing_is_changed(engine: Engine) -> None:
    engine.fill(3)
    held = engine.take(3)
    before = engine.rows("select msg_id, read_ct, vt from pgmq.q_work order by 1")
    assert lost(engine, *held) == {}
    assert lost(engine) == {}
    assert engine.rows("select msg_id, read_ct, vt from pgmq.q_work order by 1") == before


def test_gone_and_taken_are_told_apart(engine: Engine) -> None:
    engine.fill(4)
    one, two, three, four = engine.take(4)
    engine.rows("delete from pgmq.q_work where msg_id = 1")
    engine.age(2)
    engine.take_one(suspects=1)
    engine.settle(others=[(three, "failed", 5, "", "x")])
    assert lost(engine, one, two, three, four) == {1: True, 2: False, 3: False}


def test_a_queue_made_anew_holds_nothing_of_the_old_one(engine: Engine) -> None:
    engine.fill(1)
    (old,) = engine.take(1)
    engine.rows("select pgmq.drop_queue('work')")
    with pytest.raises(psycopg.errors.UndefinedTable):
        lost(engine, old)
    engine.create()
    engine.fill(1)
    engine.take(1)
    assert lost(engine, old) == {1: True}
