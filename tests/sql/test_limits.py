"""Limits of the whole fleet: starts per time, and how many run at once; and the breaker."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from tests.sql.engine import Engine, receipt


def kinds(rows: list[Any]) -> list[str]:
    return [row.kind for row in rows]


def limit(engine: Engine, count: int | None, seconds: int | None = 60) -> None:
    engine.rows("select queue_worker.set_rate_limit('work', %s, %s)", count, seconds)


def wind_back(engine: Engine, seconds: float) -> None:
    """As if `seconds` had passed since the starts that are written down."""
    engine.rows(
        "update queue_worker_data.limits set used_at = (select array_agg(u - make_interval(secs => %s))"
        " from unnest(used_at) u)",
        seconds,
    )


# ---------------------------------------------------------------------------------------------------- rate


def test_no_more_start_than_the_rate_allows_whoever_claims(engine: Engine) -> None:
    engine.fill(20)
    limit(engine, 5)
    assert len(engine.take(3, worker="one")) == 3
    assert len(engine.take(10, worker="two")) == 2
    (row,) = engine.claim(10)
    assert row.kind == "limited"
    assert 55 < float(row.detail) <= 61


def test_what_was_started_counts_until_exactly_one_window_later(engine: Engine) -> None:
    engine.fill(20)
    limit(engine, 5)
    engine.take(3)
    wind_back(engine, 30)
    engine.take(2)
    assert kinds(engine.claim(5)) == ["limited"]
    wind_back(engine, 31)
    assert len(engine.take(10)) == 3
    assert kinds(engine.claim(5)) == ["limited"]


def test_no_window_ever_holds_more_than_the_rate(engine: Engine, dsn: str) -> None:
    engine.fill(2000)
    limit(engine, 40, 1)
    starts: list[tuple[datetime, int]] = []
    lock, done = threading.Lock(), threading.Event()

    def work() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            mine = Engine(connection)
            while not done.is_set():
                rows = mine.claim(3)
                count = kinds(rows).count("job")
                if count:
                    # vt is the claim's reading of the clock and its lease.
                    ids = [row.msg_id for row in rows if row.kind == "job"]
                    at = mine.value("select min(vt) - interval '60 s' from pgmq.q_QUEUE where msg_id = any (%s)", ids)
                    with lock:
                        starts.append((at, count))
                        if sum(count for _, count in starts) >= 160:
                            done.set()
                elif rows:
                    done.wait(min(float(rows[0].detail or 0.01), 0.05))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    starts.sort()
    for begin, _ in starts:
        inside = sum(count for at, count in starts if begin <= at < begin + timedelta(seconds=1))
        assert inside <= 40
    assert engine.value("select cardinality(used_at) from queue_worker_data.limits") <= 251


def test_the_rate_is_changed_and_lifted_at_run_time(engine: Engine) -> None:
    engine.fill(20)
    limit(engine, 1)
    engine.take(5)
    limit(engine, 4)
    assert len(engine.take(10)) == 3
    limit(engine, None, None)
    assert len(engine.take(10)) == 10


@pytest.mark.parametrize(("count", "seconds"), [(0, 1), (-1, 1), (5, 0), (5, None), (5, 86_401), (1_000_001, 1)])
def test_a_rate_that_makes_no_sense_is_refused(engine: Engine, count: int, seconds: int | None) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="must be 1 to"):
        limit(engine, count, seconds)


def test_a_rate_works_together_with_priority_and_groups(engine: Engine) -> None:
    engine.rows("select queue_worker.create_queue('work', ordered => true)")
    limit(engine, 2)
    engine.send(headers={"group_key": "a"})
    engine.send(headers={"group_key": "b"})
    high = engine.send(headers={"group_key": "c", "priority": 9})
    receipts = engine.take(10)
    assert len(receipts) == 2
    assert high in {one[0] for one in receipts}


# ---------------------------------------------------------------------------------------------------- concurrency


def test_no_more_run_in_the_whole_fleet_than_its_limit(engine: Engine) -> None:
    engine.fill(10)
    engine.rows("select queue_worker.set_concurrency('work', fleet => 3)")
    first = engine.take(2, worker="one")
    assert len(engine.take(10, worker="two")) == 1
    assert kinds(engine.claim(10)) == ["limited"]
    engine.settle(first[:1])
    assert len(engine.take(10)) == 1


def test_every_way_to_end_frees_a_place(engine: Engine) -> None:
    engine.fill(10)
    engine.rows("select queue_worker.set_concurrency('work', fleet => 1)")
    engine.settle(others=[(engine.take_one(), "failed", 60, "", "boom")])
    engine.settle(others=[(engine.take_one(), "dead", 0, "rejected", "no")])
    engine.release([engine.take_one()], delay=60)
    one = engine.take_one()
    engine.rows("select pgmq.delete(queue_name => 'work', msg_id => %s)", one[0])
    last = engine.take_one()
    engine.age(last[0])
    assert [row.msg_id for row in engine.claim(1, suspects=1) if row.kind == "job"] != []


def test_a_lease_that_was_extended_keeps_its_place(engine: Engine) -> None:
    engine.fill(2)
    engine.rows("select queue_worker.set_concurrency('work', fleet => 1)")
    one = engine.take_one(lease=1)
    engine.extend([one], 3600)
    assert kinds(engine.claim(1)) == ["limited"]


def test_a_lease_that_is_extended_after_its_end_has_its_place_again(engine: Engine) -> None:
    engine.fill(2)
    engine.rows("select queue_worker.set_concurrency('work', fleet => 1)")
    one = engine.take_one()
    engine.age(one[0])
    # A claim looks at the places; the suspect itself is not taken.
    other = engine.take_one()
    engine.release([other], 60)
    engine.extend([one], 60)
    engine.send()
    assert kinds(engine.claim(1)) == ["limited"]


def test_what_ran_before_there_was_a_limit_counts(engine: Engine) -> None:
    engine.fill(6)
    held = engine.take(3)
    engine.settle(others=[(engine.take_one(), "failed", 60, "", "boom")])
    engine.rows("select queue_worker.set_concurrency('work', fleet => 3)")
    assert kinds(engine.claim(1)) == ["limited"]
    engine.settle(held[:1])
    assert len(engine.take(5)) == 1


def test_claims_at_once_do_not_pass_the_limit(engine: Engine, dsn: str) -> None:
    engine.fill(100)
    engine.rows("select queue_worker.set_concurrency('work', fleet => 5)")
    got: list[int] = []

    def work() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            got.append(len(Engine(connection).take(2)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(got) == 5


def test_a_claim_does_not_wait_long_for_another_one_that_stands_still(engine: Engine, dsn: str) -> None:
    engine.fill(4)
    engine.rows("select queue_worker.set_concurrency('work', fleet => 2)")
    with psycopg.connect(dsn) as still:
        Engine(still).take(1)
        (row,) = engine.claim(1)
        assert (row.kind, float(row.detail)) == ("limited", 0.05)
    assert len(engine.take(4)) == 1


def test_per_group_wants_a_queue_that_has_groups(engine: Engine) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="has no groups"):
        engine.rows("select queue_worker.set_concurrency('work', per_group => 2)")


# ---------------------------------------------------------------------------------------------------- breaker


def trip(engine: Engine, seconds: float = 60, probe: float = 10) -> None:
    engine.rows("select queue_worker.trip('work', %s, %s, 'provider is down', 'w')", seconds, probe)


def pass_time(engine: Engine) -> None:
    engine.rows("update queue_worker_data.queues set broken_until = clock_timestamp() - interval '1 ms'")


def test_nothing_is_claimed_while_the_breaker_is_open_and_it_says_how_long(engine: Engine) -> None:
    engine.fill(3)
    trip(engine)
    (row,) = engine.claim(3)
    assert row.kind == "paused"
    assert 55 < float(row.detail) <= 60
    assert engine.state(1).read_ct == 0


def test_after_the_pause_one_message_at_a_time_is_tried(engine: Engine) -> None:
    engine.fill(5)
    trip(engine)
    pass_time(engine)
    rows = engine.claim(5, worker="one")
    assert kinds(rows) == ["probe", "job"]
    assert kinds(engine.claim(5, worker="two")) == ["paused"]
    pass_time(engine)
    assert kinds(engine.claim(5)) == ["probe", "job"]


def test_a_trial_that_succeeds_closes_it_for_everybody(engine: Engine) -> None:
    engine.fill(5)
    trip(engine)
    pass_time(engine)
    engine.claim(5)
    assert engine.value("select queue_worker.close_breaker('work')")
    assert not engine.value("select queue_worker.close_breaker('work')")
    assert len(engine.take(5)) == 4


def test_a_trial_that_finds_nothing_leaves_the_next_message_to_be_it(engine: Engine) -> None:
    trip(engine)
    pass_time(engine)
    assert kinds(engine.claim(5)) == ["probe"]
    engine.fill(2)
    assert kinds(engine.claim(5)) == ["probe", "job"]


def test_messages_that_have_expired_are_no_trials(engine: Engine) -> None:
    for _ in range(3):
        engine.send(headers={"expires_at": "2020-01-01T00:00:00Z"})
    trip(engine)
    pass_time(engine)
    assert kinds(engine.claim(2)) == ["probe", "expired", "expired"]
    engine.fill(2)
    assert kinds(engine.claim(5)) == ["probe", "expired", "job"]
    assert kinds(engine.claim(5)) == ["paused"]


def test_a_suspect_that_must_wait_is_no_trial(engine: Engine) -> None:
    engine.fill(1)
    engine.take(1)
    engine.age()
    trip(engine)
    pass_time(engine)
    assert kinds(engine.claim(5)) == ["probe", "suspect"]
    assert kinds(engine.claim(5, suspects=1)) == ["probe", "job"]


def test_another_report_never_shortens_the_pause(engine: Engine) -> None:
    trip(engine, 600)
    trip(engine, 5)
    (row,) = engine.claim(1)
    assert float(row.detail) > 500
    assert engine.value("select count(*) from queue_worker_data.audit where action = 'trip'") == 1


def test_a_person_may_end_it(engine: Engine) -> None:
    engine.fill(1)
    trip(engine)
    engine.rows("select queue_worker.resume('work')")
    assert len(engine.take(1)) == 1


# ---------------------------------------------------------------------------------------------------- expiry


def test_an_expired_message_is_reported_and_not_as_a_job(engine: Engine) -> None:
    late = engine.send(headers={"expires_at": "2020-01-01T00:00:00Z"})
    fresh = engine.send(headers={"expires_at": "2999-01-01T00:00:00Z"})
    rows = {row.msg_id: row for row in engine.claim(5)}
    assert {one: row.kind for one, row in rows.items()} == {late: "expired", fresh: "job"}
    engine.settle(others=[(receipt(rows[late]), "dead", 0, "expired", "too late")])
    assert engine.rows("select reason, attempts from queue_worker.dead_letters") == [("expired", 0)]


def test_a_message_that_expires_while_it_waits_for_a_retry_keeps_the_count_of_its_failures(engine: Engine) -> None:
    sent = engine.send()
    engine.settle(others=[(engine.take_one(), "failed", 0, "", "boom")])
    engine.rows("""update pgmq.q_QUEUE set headers = '{"expires_at": "2020-01-01T00:00:00Z"}'""")
    (row,) = engine.claim(5)
    assert (row.kind, row.msg_id) == ("expired", sent)
    engine.settle(others=[(receipt(row), "dead", 0, "expired", "too late")])
    assert engine.rows("select reason, attempts from queue_worker.dead_letters") == [("expired", 1)]
