"""Alerts in SQL: each rule opens one alert and clears it once, whoever checks, and every notice is somebody's."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from tests.sql.engine import Engine

Db = psycopg.Connection[Any]

OFF = {"hold": 0, "lease": 60}


def check(engine: Engine, deliver: bool = True, **rules: float) -> list[Any]:
    """One check by these rules alone; what it hands out counts as delivered."""
    rows = engine.rows("select * from queue_worker.check_alerts(%s::jsonb)", json.dumps(OFF | rules))
    for row in rows if deliver else ():
        engine.rows("select queue_worker.alert_delivered(%s, %s, %s)", row.alert_id, row.event, row.attempt)
    return rows


def said(rows: list[Any]) -> list[tuple[str, str, str]]:
    return [(row.event, row.name, row.queue) for row in rows]


def backlog(engine: Engine) -> None:
    engine.fill(4)


def oldest(engine: Engine) -> None:
    engine.send()
    engine.rows("update pgmq.q_QUEUE set vt = now() - interval '20 minutes'")


def dead(engine: Engine) -> None:
    engine.send()
    engine.settle([], [(engine.take_one(), "dead", 0, "rejected", "no")])


def error_rate(engine: Engine) -> None:
    engine.fill(4)
    first, second, third, fourth = engine.take(4)
    engine.settle([first], [(second, "retry", 600, "", "boom"), (third, "dead", 0, "rejected", "no")])
    engine.settle([fourth])
    engine.send()
    engine.settle([], [(engine.take_one(), "dead", 0, "rejected", "no")])


def worker_gone(engine: Engine) -> None:
    engine.rows("select queue_worker.heartbeat('host:1:abc', 'host', 1, '1', array['work'], 5, 2)")
    engine.rows("update queue_worker_data.workers set last_seen = now() - interval '2 minutes', started_at = last_seen")


def schedule_missed(engine: Engine) -> None:
    engine.rows("select queue_worker.schedule('s', 'work', '* * * * *', '{}')")
    engine.rows("update queue_worker_data.schedules set next_fire_at = now() - interval '10 minutes'")


CASES = {
    "backlog": (backlog, {"backlog": 3}, "delete from pgmq.q_QUEUE", "work", 4),
    "oldest": (oldest, {"oldest": 900}, "delete from pgmq.q_QUEUE", "work", 1200),
    "dead": (dead, {"dead": 1}, "select queue_worker.redrive('QUEUE')", "work", 1),
    "error_rate": (
        error_rate, {"error_rate": 50, "error_runs": 5},
        "update queue_worker_data.tally set at = at - interval '11 minutes'", "work", 60,
    ),
    "stalled": (oldest, {"stalled": 60}, "delete from pgmq.q_QUEUE", "work", 1200),
    "worker_gone": (worker_gone, {"worker": 45}, "select queue_worker.sign_off('host:1:abc')", "", 120),
    "schedule_missed": (
        schedule_missed, {"schedule": 120}, "select queue_worker.pause_schedule('s')", "work", 600,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_rule_fires_once_and_clears_once(engine: Engine, name: str) -> None:
    arrange, rules, mend, queue, value = CASES[name]
    assert check(engine, **rules) == []
    arrange(engine)
    [fired] = check(engine, **rules)
    assert said([fired]) == [("fired", name, queue)]
    assert fired.value == pytest.approx(value, abs=30)
    assert check(engine, **rules) == []
    [shown] = engine.rows("select * from queue_worker.list_alerts()")
    assert (shown.name, shown.queue, shown.cleared_at) == (name, queue, None)
    engine.rows(mend)
    [cleared] = check(engine, **rules)
    assert said([cleared]) == [("cleared", name, queue)]
    assert cleared.alert_id == fired.alert_id
    assert cleared.cleared_at >= cleared.fired_at
    assert check(engine, **rules) == []


def test_an_alert_that_is_open_clears_below_the_threshold_and_after_a_while(engine: Engine) -> None:
    engine.fill(11)
    assert said(check(engine, backlog=10)) == [("fired", "backlog", "work")]
    for left in (9, 11, 9):
        engine.rows("delete from pgmq.q_QUEUE")
        engine.fill(left)
        assert check(engine, backlog=10) == []
    engine.rows("delete from pgmq.q_QUEUE")
    assert check(engine, backlog=10, hold=3600) == []
    engine.fill(11)
    assert check(engine, backlog=10, hold=3600) == []
    assert engine.rows("select quiet_since from queue_worker_data.alerts") == [(None,)]


def test_the_look_at_everything_shows_what_is_open(engine: Engine) -> None:
    dead(engine)
    check(engine, dead=1)
    [shown] = engine.value("select queue_worker.snapshot() -> 'alerts'")
    assert (shown["name"], shown["queue"], shown["detail"]) == ("dead", "work", "1 dead letter")
    check(engine, dead=0)
    assert engine.value("select queue_worker.snapshot() -> 'alerts'") == []


def test_a_queue_that_was_dropped_takes_its_alerts_along(engine: Engine) -> None:
    engine.fill(4)
    check(engine, backlog=3)
    engine.rows("select queue_worker.drop_queue('work')")
    assert said(check(engine, backlog=3, hold=3600)) == [("cleared", "backlog", "work")]


@pytest.mark.parametrize(
    "excuse",
    [
        "select queue_worker.pause('QUEUE')",
        "update queue_worker_data.queues set broken_until = now() + interval '1 minute'",
        "select queue_worker.set_rate_limit('QUEUE', 1, 3600)",
        "select queue_worker_data.count_settled('QUEUE', done => 1)",
    ],
)
def test_a_queue_that_rests_for_a_reason_is_not_stalled(engine: Engine, excuse: str) -> None:
    oldest(engine)
    engine.rows(excuse)
    assert check(engine, stalled=60) == []


def test_a_queue_in_which_something_runs_is_not_stalled(engine: Engine) -> None:
    engine.fill(1)
    engine.take_one()
    engine.fill(1)
    engine.rows("update pgmq.q_QUEUE set vt = now() - interval '20 minutes' where read_ct = 0")
    assert check(engine, stalled=60) == []


def test_a_worker_that_was_replaced_is_not_gone(engine: Engine) -> None:
    worker_gone(engine)
    engine.rows("select queue_worker.heartbeat('host:2:abc', 'host', 2, '1', array['other', 'work'], 5, 2)")
    assert check(engine, worker=45) == []


def test_rules_that_are_off_clear_what_they_opened(engine: Engine) -> None:
    dead(engine)
    assert len(check(engine, dead=1)) == 1
    assert said(check(engine, dead=0)) == [("cleared", "dead", "work")]


def test_of_many_who_check_at_once_one_does(engine: Engine, dsn: Any) -> None:
    engine.fill(4)
    with psycopg.connect(str(dsn)) as other:
        first = Engine(other)
        assert len(check(first, deliver=False, backlog=3)) == 1
        assert check(engine, backlog=3) == []
    assert check(engine, backlog=3) == []


def test_a_fleet_looks_as_often_as_one_worker_and_hands_out_what_is_due(engine: Engine) -> None:
    engine.fill(4)
    [lost] = check(engine, deliver=False, backlog=3, every=3600)
    engine.rows("delete from pgmq.q_QUEUE")
    assert check(engine, backlog=3, every=3600) == []
    assert engine.rows("select quiet_since from queue_worker_data.alerts") == [(None,)]
    engine.rows("update queue_worker_data.alert_notices set due_at = now()")
    assert [one.alert_id for one in check(engine, backlog=3, every=3600)] == [lost.alert_id]
    engine.rows("update queue_worker_data.alert_checks set checked_at = now() - interval '1 hour'")
    assert said(check(engine, backlog=3, every=3600)) == [("cleared", "backlog", "work")]


def test_a_notice_that_nobody_delivered_is_handed_out_again_and_the_late_one_is_refused(engine: Engine) -> None:
    engine.fill(4)
    [lost] = check(engine, deliver=False, backlog=3)
    assert engine.value("select queue_worker.alert_delivered(%s, 'fired', 1, 'log')", lost.alert_id)
    engine.rows("delete from pgmq.q_QUEUE")
    assert check(engine, backlog=3) == [], "the end is told after the beginning"
    engine.rows("update queue_worker_data.alert_notices set due_at = now()")
    [again] = check(engine, deliver=False, backlog=3)
    assert (again.event, again.attempt, again.channels) == ("fired", 2, ["log"])
    assert not engine.value("select queue_worker.alert_delivered(%s, 'fired', 1)", lost.alert_id)
    assert engine.value("select queue_worker.alert_delivered(%s, 'fired', 2)", lost.alert_id)
    assert said(check(engine, backlog=3)) == [("cleared", "backlog", "work")]


def test_it_is_given_up_after_the_fifth_try(engine: Engine) -> None:
    engine.fill(4)
    tries = []
    for _ in range(7):
        tries += check(engine, deliver=False, backlog=3)
        engine.rows("update queue_worker_data.alert_notices set due_at = now()")
    assert [(one.attempt, one.last) for one in tries] == [(1, False), (2, False), (3, False), (4, False), (5, True)]


def test_a_long_queue_costs_no_more_than_the_threshold(engine: Engine) -> None:
    engine.fill(30_000)
    engine.rows("vacuum analyze pgmq.q_QUEUE")
    check(engine, backlog=20_000)
    assert engine.value("select value from queue_worker.list_alerts()") == 20_001
    (plan,) = engine.rows(
        "explain (analyze, buffers, format json) select * from queue_worker_data.alert_queue("
        '\'{"backlog": 100, "oldest": 900, "dead": 1, "stalled": 60}\', \'QUEUE\', \'pgmq.q_QUEUE\')'
    )
    assert plan[0][0]["Plan"]["Shared Hit Blocks"] < 400


def test_a_queue_that_nobody_can_look_at_keeps_its_alerts(engine: Engine, dsn: Any) -> None:
    engine.fill(4)
    assert len(check(engine, backlog=3)) == 1
    with psycopg.connect(str(dsn)) as other:
        other.execute("lock table pgmq.q_work")
        assert check(engine, backlog=3) == []


def test_old_alerts_go_with_their_notices(engine: Engine) -> None:
    engine.fill(4)
    check(engine, backlog=3)
    engine.rows("delete from pgmq.q_QUEUE")
    check(engine, backlog=3)
    engine.rows("update queue_worker_data.alerts set cleared_at = now() - interval '31 days'")
    engine.fill(4)
    assert len(check(engine, backlog=3)) == 1
    assert engine.value("select count(*) from queue_worker_data.alerts") == 1
    assert engine.value("select count(*) from queue_worker_data.alert_notices") == 1
