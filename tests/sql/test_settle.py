"""One bad item of a settle never loses its neighbours."""

from __future__ import annotations

import math
from typing import Any

import psycopg
import pytest

from tests.sql.engine import Engine


def test_a_missing_archive_is_reported_for_every_message_and_loses_none(engine: Engine) -> None:
    engine.fill(3)
    receipts = engine.take(3)
    engine.rows("alter table pgmq.a_work rename to a_elsewhere")
    rows = engine.settle_rows(done=receipts[:2], others=[(receipts[2], "failed", 0, "", "e")])
    assert [(row.kind, row.msg_id, row.detail[:5]) for row in rows] == [("error", 1, "42P01"), ("error", 2, "42P01")]
    assert engine.trouble(3) == (1, 0, 2)
    engine.rows("alter table pgmq.a_elsewhere rename to a_work")
    assert engine.settle(done=receipts[:2]) == {}
    assert engine.count("archive") == 2


def test_one_message_that_the_archive_refuses_costs_no_other(engine: Engine) -> None:
    engine.fill(5)
    receipts = engine.take(5)
    engine.rows("alter table pgmq.a_work add constraint picky check (msg_id <> 3)")
    rows = engine.settle_rows(done=receipts)
    assert [(row.kind, row.msg_id, row.detail[:5]) for row in rows] == [("error", 3, "23514")]
    assert engine.count("archive") == 4
    assert engine.places(3) == ["queue"]


def test_a_delay_beyond_reason_is_cut_to_a_year(engine: Engine) -> None:
    delays = [math.nan, math.inf, -math.inf, 1e300, -1e300, None, 1e-300]
    cases = [(kind, delay) for kind in ("failed", "release") for delay in delays]
    engine.fill(len(cases) + 1)
    receipts = engine.take(len(cases) + 1)
    others = [(one, kind, delay, "", "e") for one, (kind, delay) in zip(receipts, cases, strict=False)]
    assert engine.settle(others=[*others, (receipts[-1], "failed", 0, "", "e")]) == {}
    assert engine.value("select max(vt) <= now() + interval '366 d' from pgmq.q_work")
    assert engine.state(receipts[-1][0]).visible


@pytest.mark.parametrize(
    "bad", [("failed", 0, "", None), ("dead", 0, None, "e"), ("dead", 0, "r", None), (None, 0, "", "e")]
)
def test_an_outcome_with_a_missing_part_is_an_error_of_its_own(engine: Engine, bad: tuple[Any, ...]) -> None:
    engine.fill(3)
    receipts = engine.take(3)
    answer = engine.settle(done=[receipts[0]], others=[(receipts[1], *bad), (receipts[2], "failed", 0, "", "e")])
    assert answer == {2: "error"}
    assert engine.places(1) == ["archive"]
    assert engine.state(2).read_ct == 1  # nothing half done: its receipt still counts
    assert engine.settle(done=[receipts[1]]) == {}


def test_the_same_receipt_twice_in_one_settle_counts_once(engine: Engine) -> None:
    engine.fill(2)
    receipts = engine.take(2)
    twice = (receipts[0], "failed", 0, "", "e")
    assert engine.settle(done=[receipts[1], receipts[1]], others=[twice, twice]) == {1: "gone"}
    assert engine.trouble(1) == (1, 0, 2)
    assert engine.count("archive") == 1


def test_done_messages_are_archived_or_deleted_as_asked(engine: Engine) -> None:
    engine.send({"a": 1}, {"h": 1})
    engine.send()
    receipts = engine.take(2)
    assert engine.settle(done=[receipts[0]]) == {}
    assert engine.settle(done=[receipts[1]], on_success="delete") == {}
    assert engine.rows("select msg_id, message, headers from pgmq.a_work") == [(1, {"a": 1}, {"h": 1})]
    assert engine.count("queue") == 0


def test_attempts_are_counted_beside_the_queue_and_forgotten_with_success(engine: Engine) -> None:
    engine.fill(1)
    for failures in range(3):
        (row,) = engine.claim(1)
        assert row.failures == failures
        engine.settle(others=[((row.msg_id, row.read_ct, row.enqueued_at), "failed", 0, "", f"e{failures}")])
    assert engine.rows("select attempt, kind, error from queue_worker.failures order by failure_id") == [
        (1, "failed", "e0"),
        (2, "failed", "e1"),
        (3, "failed", "e2"),
    ]
    engine.settle(done=[engine.take_one()], on_success="delete")
    assert engine.trouble(1) is None


def test_a_dead_letter_counts_the_attempt_that_killed_it(engine: Engine) -> None:
    engine.fill(2)
    engine.settle(others=[(engine.take_one(), "failed", 0, "", "first")])
    engine.rows("update pgmq.q_work set vt = vt - interval '1 h' where msg_id = 1")
    engine.settle(others=[(engine.take_one(), "dead", 0, "attempts", "second")])
    engine.settle(others=[(engine.take_one(), "dead", 0, "invalid", "first and last")])
    assert engine.rows("select msg_id, attempts, reason, error from queue_worker.dead_letters order by msg_id") == [
        (1, 2, "attempts", "second"),
        (2, 1, "invalid", "first and last"),
    ]
    assert engine.rows("select * from queue_worker_data.trouble") == []


@pytest.mark.parametrize("outcome", ["done", "failed"])
def test_locked_messages_are_errors_of_their_own_and_waited_for_only_once(
    engine: Engine, dsn: str, outcome: str
) -> None:
    engine.fill(8)
    receipts = engine.take(8)
    engine.rows("create table seen (value text)")
    engine.rows(
        "create function note() returns trigger language plpgsql security definer as"
        " $$ begin insert into public.seen values (current_setting('lock_timeout')); return null; end $$"
    )
    engine.rows("create trigger t after insert on queue_worker_data.failures for each row execute function note()")
    outcomes = [(one, "failed", 60, "", "e") for one in receipts]
    with psycopg.connect(dsn) as other:
        other.execute("select from pgmq.q_work where msg_id <= 5 for update")
        with engine.connection.transaction():
            engine.rows("set local lock_timeout = '7s'")
            if outcome == "done":
                rows = engine.settle_rows(done=receipts[:7], others=outcomes[7:])
            else:
                rows = engine.settle_rows(others=outcomes)
            assert engine.value("show lock_timeout") == "7s"
    assert [(row.kind, row.msg_id, row.detail[:5]) for row in rows] == [("error", n, "55P03") for n in range(1, 6)]
    settled = {"done": (2, 1), "failed": (0, 3)}[outcome]
    assert (engine.count("archive"), engine.value("select count(*) from queue_worker.failures")) == settled
    assert engine.rows("select distinct value from seen") == [("10ms",)]
    assert engine.settle(done=receipts[:5]) == {}


def test_without_a_locked_row_every_wait_may_take_its_full_time(engine: Engine) -> None:
    engine.fill(2)
    receipts = engine.take(2)
    engine.rows(
        "create function note() returns trigger language plpgsql as"
        " $$ begin new.error := current_setting('lock_timeout'); return new; end $$"
    )
    engine.rows("create trigger t before insert on queue_worker_data.failures for each row execute function note()")
    stale = (receipts[0][0], 7, receipts[0][2])
    assert engine.settle(done=[stale], others=[(receipts[1], "failed", 0, "", "e")]) == {1: "stale"}
    assert engine.rows("select error from queue_worker.failures") == [("1s",)]
