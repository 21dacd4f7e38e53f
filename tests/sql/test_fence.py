"""Whoever lost a message changes nothing any more, and is told so."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg

from tests.helpers import wait_until
from tests.sql.engine import Engine, Receipt, columns

STALE_ACTS = {
    "done": lambda engine, old: engine.settle(done=[old]),
    "done and delete": lambda engine, old: engine.settle(done=[old], on_success="delete"),
    "failed": lambda engine, old: engine.settle(others=[(old, "failed", 0, "", "late")]),
    "timeout": lambda engine, old: engine.settle(others=[(old, "timeout", 0, "", "late")]),
    "dead": lambda engine, old: engine.settle(others=[(old, "dead", 0, "rejected", "late")]),
    "release": lambda engine, old: engine.settle(others=[(old, "release", 0, "", "")]),
}


def lost_to_another(engine: Engine) -> tuple[Receipt, Receipt]:
    """A receipt whose lease ended, and that of the worker that has the message now."""
    msg_id = engine.send()
    old = engine.take_one()
    engine.age(msg_id)
    return old, engine.take_one(suspects=1)


def test_a_stale_settle_changes_nothing_and_is_reported(engine: Engine) -> None:
    for act in STALE_ACTS.values():
        old, new = lost_to_another(engine)
        before = engine.state(old[0])
        assert act(engine, old) == {old[0]: "stale"}
        assert engine.state(old[0]) == before
        assert engine.places(old[0]) == ["queue"]
        assert engine.settle(done=[new]) == {}
        assert engine.places(old[0]) == ["archive"]


def test_a_stale_extend_release_and_hold_change_nothing(engine: Engine) -> None:
    old, new = lost_to_another(engine)
    before = engine.state(old[0])
    assert engine.extend([old], 600) == [old[0]]
    assert engine.release([old]) == 0
    assert engine.hold(old) is False
    assert engine.state(old[0]) == before
    assert engine.extend([new], 600) == []
    assert engine.hold(new) is True


def test_a_lease_that_ended_but_was_taken_by_nobody_still_counts(engine: Engine) -> None:
    msg_id = engine.send()
    mine = engine.take_one()
    engine.age(msg_id)
    assert engine.extend([mine]) == []
    assert engine.state(msg_id).visible is False
    engine.age(msg_id)
    assert engine.settle(done=[mine]) == {}


def test_a_receipt_of_a_dropped_queue_never_matches_its_successor(engine: Engine) -> None:
    engine.send({"generation": 1})
    old = engine.take_one()
    engine.rows("select pgmq.drop_queue('work')")
    engine.create()
    engine.send({"generation": 2})
    new = engine.take_one()
    assert old[:2] == new[:2] == (1, 1)
    before = engine.state(1)
    for act in STALE_ACTS.values():
        assert act(engine, old) == {1: "gone"}
    assert engine.extend([old]) == [1]
    assert engine.hold(old) is False
    assert engine.state(1) == before
    assert engine.settle(done=[new]) == {}


def test_trouble_of_a_dropped_queue_is_not_charged_to_its_successor(engine: Engine) -> None:
    engine.send()
    engine.settle(others=[(engine.take_one(), "failed", 0, "", "first life")])
    assert engine.trouble(1) == (1, 0, 2)
    engine.rows("select pgmq.drop_queue('work')")
    engine.create()
    engine.send()
    first = engine.claim()[0]
    assert (first.failures, first.lost) == (0, 0)
    engine.age(1)
    again = engine.claim(suspects=1)[0]
    assert (again.failures, again.lost) == (0, 1)
    assert engine.trouble(1) == (0, 1, None)


def test_a_settle_that_leaves_the_row_spends_its_receipt(engine: Engine) -> None:
    for kind in ("failed", "timeout", "release"):
        msg_id = engine.send()
        used = engine.take_one()
        assert engine.settle(others=[(used, kind, 600, "", "e")]) == {}
        before, charged = engine.state(msg_id), engine.trouble(msg_id)
        assert engine.extend([used], 6000) == [msg_id]
        assert engine.hold(used) is False
        assert engine.settle(done=[used]) == {msg_id: "gone"}
        assert (engine.state(msg_id), engine.trouble(msg_id)) == (before, charged)
        assert before.read_ct == used[1] + 1


def test_an_outcome_sent_again_after_a_lost_reply_is_gone_and_charges_once(engine: Engine) -> None:
    for kind in ("failed", "timeout", "release", "dead"):
        msg_id = engine.send()
        outcome = (engine.take_one(), kind, 0, "rejected", "once")
        assert engine.settle(others=[outcome]) == {}
        charged = engine.trouble(msg_id)
        assert engine.settle(others=[outcome]) == {msg_id: "gone"}
        assert engine.trouble(msg_id) == charged
        failures = engine.value("select count(*) from queue_worker_data.failures where msg_id = %s", msg_id)
        assert failures == (0 if kind == "release" else 1)
        # Also when somebody has claimed the message meanwhile.
        if kind != "dead":
            assert len(engine.take(1)) == 1
            assert engine.settle(others=[outcome]) == {msg_id: "gone"}


def test_an_ack_sent_again_after_a_lost_reply_is_gone_and_archives_once(engine: Engine) -> None:
    engine.fill(3)
    receipts = engine.take(3)
    assert engine.settle(done=receipts[:2]) == {}
    assert engine.settle(done=receipts) == {1: "gone", 2: "gone"}
    assert engine.count("archive") == 3


def test_one_stale_receipt_leaves_the_rest_of_its_set_alone(engine: Engine) -> None:
    engine.fill(4)
    receipts = engine.take(4)
    engine.age(2)
    engine.take(1, suspects=1)
    answer = engine.settle(
        done=receipts[:2],
        others=[
            (receipts[2], "failed", 0, "", "e"),
            ((99, 1, receipts[0][2]), "failed", 0, "", "e"),
            (receipts[3], "dead", 0, "rejected", "e"),
        ],
    )
    assert answer == {2: "stale", 99: "gone"}
    assert [engine.places(one) for one in (1, 2, 3, 4)] == [["archive"], ["queue"], ["queue"], ["dead"]]


def test_read_ct_is_never_lowered(engine: Engine) -> None:
    msg_id, seen = engine.send(), [0]
    for kind in ("release", "failed", "timeout", "release"):
        one = engine.take_one(suspects=1)
        seen.append(one[1])
        engine.settle(others=[(one, kind, 0, "", "e")])
        seen.append(engine.state(msg_id).read_ct)
    assert seen == list(range(9))


def test_six_threads_that_settle_and_claim_the_same_messages_have_one_winner_each(dsn: str, engine: Engine) -> None:
    engine.fill(120)
    held = engine.take(120)
    engine.age()
    barrier = threading.Barrier(6)

    def race(number: int) -> tuple[list[int], list[int]]:
        with psycopg.connect(dsn, autocommit=True) as connection:
            mine = Engine(connection)
            barrier.wait(10)
            if number % 2:
                claimed: list[int] = []
                for _ in range(60):
                    claimed += [one[0] for one in mine.take(4, suspects=1, worker=str(number))]
                return [], claimed
            won = []
            for start in range(0, 120, 8):
                part = held[start : start + 8]
                missed = mine.settle(done=part)
                won += [one[0] for one in part if one[0] not in missed]
            return won, []

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(race, range(6)))
    settled = [one for won, _ in answers for one in won]
    claimed = [one for _, found in answers for one in found]
    assert len(settled) == len(set(settled)) == engine.count("archive")
    assert set(settled).isdisjoint(claimed)
    assert len(claimed) == len(set(claimed))
    assert engine.count("archive") + engine.count("queue") == 120


def test_a_settle_that_waits_for_the_row_lock_of_a_new_claim_loses(dsn: str, engine: Engine) -> None:
    msg_id = engine.send()
    old = engine.take_one()
    engine.age(msg_id)
    with (
        psycopg.connect(dsn) as claimer,
        psycopg.connect(dsn, autocommit=True) as watcher,
        ThreadPoolExecutor(1) as pool,
    ):
        new = Engine(claimer).take_one(suspects=1)  # holds the row lock until it commits
        late = pool.submit(engine.settle, [old])
        wait_until(lambda: waits_for_a_lock(watcher))
        claimer.commit()
        assert late.result(10) == {msg_id: "stale"}
    assert engine.settle(done=[new]) == {}


def waits_for_a_lock(connection: psycopg.Connection[Any]) -> bool:
    return bool(
        connection.execute(
            "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        ).fetchone()
    )


def test_a_row_that_a_handler_holds_does_not_block_the_leases_of_its_neighbours(dsn: str, engine: Engine) -> None:
    engine.fill(3)
    receipts = engine.take(3, lease=10)
    with psycopg.connect(dsn) as handler:
        assert Engine(handler).hold(receipts[1])
        before = [engine.state(one).vt for one in (1, 2, 3)]
        engine.rows("set statement_timeout = '5s'")
        assert engine.extend(receipts, 600) == []
        after = [engine.state(one).vt for one in (1, 2, 3)]
    assert [new > old for new, old in zip(after, before, strict=True)] == [True, False, True]


def test_a_row_that_somebody_keeps_locked_does_not_stop_the_settles_of_its_neighbours(dsn: str, engine: Engine) -> None:
    engine.fill(4)
    receipts = engine.take(4)
    with psycopg.connect(dsn) as handler:
        assert Engine(handler).hold(receipts[1])
        engine.rows("set statement_timeout = '20s'")
        rows = engine.settle_rows(
            done=receipts[:2], others=[(receipts[2], "failed", 0, "", "e"), (receipts[3], "release", 0, "", "")]
        )
        assert [(row.kind, row.msg_id, row.detail[:5]) for row in rows] == [("error", 2, "55P03")]
    assert engine.settle(done=[receipts[1]]) == {}
    assert engine.count("archive") == 2


def test_extends_and_settles_in_opposite_order_do_not_deadlock(dsn: str, engine: Engine) -> None:
    engine.fill(2)
    receipts = engine.take(2)
    with psycopg.connect(dsn) as other, ThreadPoolExecutor(1) as pool:
        other.execute("select 1 from pgmq.q_work where msg_id = 2 for update")
        # The extend passes over the locked row 2 and keeps no lock on row 1, which the other one wants next.
        assert pool.submit(engine.extend, receipts).result(10) == []
        other.execute("set lock_timeout = '2s'")
        other.execute("select 1 from pgmq.q_work where msg_id = 1 for update")
        settle = "select * from queue_worker.settle('work', %s::bigint[], %s::int[], %s::timestamptz[])"
        other.execute(settle, columns(receipts))
    assert engine.count("archive") == 2
