"""Follow-ups: when all messages of a batch have ended, the one that follows is sent, once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.helpers import wait_until
from tests.sql.engine import Engine, Receipt
from tests.sql.race import race


def send_batch(engine: Engine, count: int, then_queue: str = "after", payload: Any = None) -> str:
    """Send a batch with a follow-up; returns its id."""
    engine.rows(
        "select queue_worker.send_batch(%s, %s, then_queue => %s, then_payload => %s)",
        engine.queue,
        Jsonb([{"payload": {"n": n}} for n in range(count)]),
        then_queue,
        None if payload is None else Jsonb(payload),
    )
    return str(engine.value("select batch_id from queue_worker.batches order by created_at desc limit 1"))


def outcome(one: Receipt) -> tuple[Any, ...]:
    return (one, "result", None, None, "")


def dead(one: Receipt) -> tuple[Any, ...]:
    return (one, "dead", 0, "rejected", "e")


def sent_after(engine: Engine) -> list[tuple[Any, ...]]:
    """(payload, headers) of the follow-ups."""
    return [tuple(row) for row in engine.rows("select message, headers from pgmq.q_after order by msg_id")]


def batch(engine: Engine) -> tuple[Any, ...]:
    """(total, done, failed, finished) of the newest batch."""
    (row,) = engine.rows(
        "select total, done, failed, finished_at is not null from queue_worker.batches order by created_at desc limit 1"
    )
    return tuple(row)


@pytest.fixture(autouse=True)
def after(engine: Engine) -> None:
    Engine(engine.connection, "after").create()


def test_the_follow_up_is_sent_with_the_last_member(engine: Engine) -> None:
    batch_id = send_batch(engine, 3, payload={"report": 7})
    assert [row[0] for row in engine.rows("select headers from pgmq.q_work")] == [{"batch": batch_id}] * 3
    receipts = engine.take(3)
    engine.settle(others=[outcome(receipts[0]), (receipts[1], "failed", 0, "", "e")])
    assert (batch(engine), sent_after(engine)) == ((3, 1, 0, False), [])
    engine.settle(others=[outcome(receipts[2])])
    assert (batch(engine), sent_after(engine)) == ((3, 2, 0, False), [])
    engine.settle(others=[outcome(engine.take_one())])
    assert (batch(engine), sent_after(engine)) == ((3, 3, 0, True), [({"report": 7}, {"batch": batch_id})])
    assert engine.value("select count(*) from queue_worker_data.batch_counts") == 0
    ((then_id,),) = engine.rows("select then_id from queue_worker.batches")
    assert then_id == engine.value("select msg_id from pgmq.q_after")


def test_a_batch_without_a_follow_up_is_a_plain_one(engine: Engine) -> None:
    engine.rows("select queue_worker.send_batch('work', '[{\"payload\": {}}]')")
    assert engine.rows("select headers from pgmq.q_work") == [(None,)]
    assert engine.value("select count(*) from queue_worker.batches") == 0


def test_an_empty_batch_sends_its_follow_up_at_once(engine: Engine) -> None:
    batch_id = send_batch(engine, 0)
    assert (batch(engine), sent_after(engine)) == ((0, 0, 0, True), [({}, {"batch": batch_id})])


def test_options_and_headers_of_members_stay(engine: Engine) -> None:
    items = [{"payload": {}, "priority": 4, "headers": {"own": 1}}]
    engine.rows("select queue_worker.send_batch('work', %s, 'after')", Jsonb(items))
    (headers,) = engine.rows("select headers from pgmq.q_work")[0]
    assert (headers["own"], headers["priority"], set(headers)) == (1, 4, {"own", "priority", "batch"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("'work', '[]', then_payload => '{}'", "then_payload needs a then_queue"),
        ("'work', '[]', 'after', '[]'", "then_payload must be a JSON object"),
        ("'work', '[]', 'after', jsonb_build_object('x', repeat('x', 262144))", "262144"),
        ("'work', '[]', 'After'", "is not allowed"),
        ("'work', '[]', 'nowhere'", 'queue "nowhere" does not exist'),
        ("'work', '[{\"payload\": {}, \"unique_key\": \"k\"}]', 'after'", "unique_key and then_queue"),
    ],
)
def test_a_wrong_follow_up_is_refused(engine: Engine, arguments: str, words: str) -> None:
    with pytest.raises(psycopg.Error, match=words):
        engine.rows(f"select queue_worker.send_batch({arguments})")
    assert engine.count("queue") == engine.value("select count(*) from queue_worker.batches") == 0


def test_dead_members_keep_a_batch_open_until_they_are_redriven(engine: Engine) -> None:
    send_batch(engine, 3)
    first, second, third = engine.take(3)
    engine.settle(others=[outcome(first), dead(second), dead(third)])
    assert (batch(engine), sent_after(engine)) == ((3, 1, 0, False), [])
    engine.rows("select queue_worker.redrive('work')")
    engine.settle(others=[dead(one) for one in engine.take(1)])
    engine.rows("select queue_worker.redrive('work')")
    assert engine.value("select queue_worker_data.recount_batches('work')") == 0
    assert batch(engine) == (3, 1, 0, False)
    engine.settle(others=[outcome(one) for one in engine.take(5)])
    assert (batch(engine), len(sent_after(engine))) == ((3, 3, 0, True), 1)


def test_discarded_members_are_failed_ones(engine: Engine) -> None:
    send_batch(engine, 3)
    engine.send({}, {"batch": "nothing of ours"})
    first, *others = engine.take(4)
    engine.settle(others=[outcome(first), *(dead(one) for one in others)])
    engine.rows("select queue_worker.discard('work', array[1])")
    assert batch(engine) == (3, 1, 1, False)
    assert engine.value("select queue_worker.discard('work')") == 2
    assert (batch(engine), len(sent_after(engine))) == ((3, 1, 2, True), 1)


@pytest.mark.parametrize("failed", [True, False])
def test_what_an_operator_archives_is_counted(engine: Engine, failed: bool) -> None:
    send_batch(engine, 1)
    engine.rows("select pgmq.archive('work', 1::bigint)")
    assert engine.value("select queue_worker_data.count_archived('work', 1, %s)", failed)
    assert not engine.value("select queue_worker_data.count_archived('work', 2, %s)", failed)
    assert batch(engine) == ((1, 0, 1, True) if failed else (1, 1, 0, True))


def test_members_that_left_unseen_are_found_by_housekeeping(engine: Engine) -> None:
    send_batch(engine, 6)
    receipts = engine.take(3)
    engine.settle(others=[outcome(receipts[0]), dead(receipts[1])])
    engine.settle(done=[receipts[2]])  # as whoever knows nothing of batches settles
    engine.rows("select pgmq.delete('work', 4::bigint)")
    assert batch(engine) == (6, 1, 0, False)
    recount = "select queue_worker_data.recount_batches('work')"
    for counted in (2, 0):
        assert engine.value(recount) == counted
        assert batch(engine) == (6, 2, 1, False)  # two still wait, one is dead
    engine.rows("select pgmq.purge_queue('work')")
    engine.rows("delete from queue_worker_data.dead_letters")
    assert (engine.value(recount), batch(engine), len(sent_after(engine))) == (3, (6, 2, 4, True), 1)
    assert engine.value(recount) == 0


def test_housekeeping_closes_the_batches_of_a_queue_that_is_gone(engine: Engine) -> None:
    send_batch(engine, 2)
    engine.rows("select pgmq.drop_queue('work')")
    assert engine.value("select queue_worker_data.recount_batches('work')") == 2
    assert (batch(engine), len(sent_after(engine))) == ((2, 0, 2, True), 1)


def test_headers_of_others_count_in_no_batch(engine: Engine) -> None:
    batch_id = send_batch(engine, 1)
    other = Engine(engine.connection, "other").create()
    other.send({}, {"batch": batch_id})
    other.settle(others=[outcome(other.take_one())])
    # A handler that passes on all its headers.
    engine.rows("select queue_worker.send('work', '{}', headers => %s)", Jsonb({"batch": batch_id}))
    forged: list[Any] = [7, None, [batch_id], {"id": batch_id}, batch_id.upper(), f"{batch_id} ", "", [], "batch"]
    for one in forged:
        engine.send({}, {"batch": one})
    engine.send({}, ["batch"])
    engine.send({}, "batch")
    member, *rest = engine.take(20)
    assert len(rest) == len(forged) + 3
    assert engine.settle(others=[outcome(one) for one in rest]) == {}
    assert batch(engine) == (1, 0, 0, False)
    engine.settle(others=[outcome(member)])
    assert batch(engine) == (1, 1, 0, True)


def test_a_follow_up_counts_in_no_batch_and_may_live_in_the_same_queue(engine: Engine) -> None:
    send_batch(engine, 1, then_queue="work")
    for _ in range(2):
        assert engine.settle(others=[outcome(engine.take_one())]) == {}
    assert (batch(engine), engine.count("queue")) == ((1, 1, 0, True), 0)


def test_a_follow_up_that_cannot_be_sent_costs_no_settle_and_goes_out_later(engine: Engine) -> None:
    send_batch(engine, 1)
    engine.rows("select pgmq.drop_queue('after')")
    assert engine.settle(others=[outcome(engine.take_one())]) == {}
    assert engine.count("archive") == 1
    assert batch(engine) == (1, 1, 0, True)
    assert "42P01" in engine.value("select then_error from queue_worker.batches")
    recount = "select queue_worker_data.recount_batches('work')"
    assert engine.value(recount) == 0
    Engine(engine.connection, "after").create()
    engine.rows(recount)
    assert len(sent_after(engine)) == 1
    engine.rows(recount)
    assert len(sent_after(engine)) == 1


def test_a_batch_that_somebody_locks_costs_no_settle_and_is_counted_later(engine: Engine, dsn: str) -> None:
    send_batch(engine, 2)
    first, second = engine.take(2)
    with psycopg.connect(dsn) as other:
        other.execute("select from queue_worker_data.batches for update")
        assert engine.settle(others=[outcome(first)]) == {}
    assert batch(engine) == (2, 0, 0, False)
    engine.settle(others=[outcome(second)])
    assert (batch(engine), len(sent_after(engine))) == ((2, 2, 0, True), 1)


def test_what_is_rolled_back_is_not_counted(engine: Engine) -> None:
    send_batch(engine, 2)
    first, second = engine.take(2)
    with engine.connection.transaction(force_rollback=True):
        engine.settle(others=[outcome(first)])
    with engine.connection.transaction():
        with engine.connection.transaction(force_rollback=True):
            engine.settle(others=[outcome(first)])
        engine.settle(others=[outcome(second)])
        assert batch(engine) == (2, 0, 0, False)  # folded at the end
    assert batch(engine) == (2, 1, 0, False)
    engine.settle(others=[outcome(first)])
    assert (batch(engine), len(sent_after(engine))) == ((2, 2, 0, True), 1)


# ----------------------------------------------------------------------------------------------------- at once


def claim_while_settling(connection: psycopg.Connection[Any], receipts: list[Receipt]) -> None:
    """What a worker calls under load."""
    ids, cts, ats = ([one[part] for one in receipts] for part in (0, 1, 2))
    n = len(receipts)
    rows = connection.execute(
        "select kind, detail from queue_worker.settle_claim('work', '{}', '{}', '{}', 'archive', %s::bigint[],"
        " %s::int[], %s::timestamptz[], %s::text[], %s::float8[], %s::text[], %s::text[], 1, 60, 0, 5, 'w', false)",
        [ids, cts, ats, ["result"] * n, [0.0] * n, [""] * n, [""] * n],
    ).fetchall()
    assert rows == []


@pytest.mark.parametrize("way", ["settle_claim", "transaction"])
def test_members_that_settle_at_once_send_exactly_one_follow_up(engine: Engine, dsn: str, way: str) -> None:
    for _ in range(25):
        send_batch(engine, 4)
        receipts = engine.take(4)

        def work(connection: psycopg.Connection[Any], number: int, receipts: list[Receipt] = receipts) -> None:
            if way == "settle_claim":
                claim_while_settling(connection, receipts[number : number + 1])
                return
            mine = Engine(connection)
            with connection.transaction():
                assert mine.hold(receipts[number])
                assert mine.settle(others=[outcome(receipts[number])]) == {}

        race(dsn, 4, work)
        assert batch(engine) == (4, 4, 0, True)
    assert len(sent_after(engine)) == 25


def test_two_open_transactions_that_both_settle_a_last_member(engine: Engine, dsn: str) -> None:
    """Neither sees the other's settle while it works; the one that commits second sends the follow-up."""
    send_batch(engine, 2)
    first, second = engine.take(2)
    with psycopg.connect(dsn) as one, psycopg.connect(dsn) as two:
        assert Engine(one).settle(others=[outcome(first)]) == {}
        assert Engine(two).settle(others=[outcome(second)]) == {}
        one.commit()
        assert sent_after(engine) == []
    assert (batch(engine), len(sent_after(engine))) == ((2, 2, 0, True), 1)


def test_settles_of_several_batches_in_any_order_do_not_deadlock(engine: Engine, dsn: str) -> None:
    for _ in range(12):
        send_batch(engine, 8)
    receipts = engine.take(96)

    def work(connection: psycopg.Connection[Any], number: int) -> None:
        # Each thread settles one or two of every batch, every other one the other way round.
        mine = receipts[number::6][:: -1 if number % 2 else 1]
        for start in range(0, len(mine), 8):
            claim_while_settling(connection, mine[start : start + 8])

    race(dsn, 6, work)
    finished = "select count(*) from queue_worker.batches where finished_at is not null and done = 8 and failed = 0"
    assert engine.value(finished) == 12
    assert len(sent_after(engine)) == 12


def test_a_transaction_touches_the_batches_of_its_members_in_one_order_whatever_order_it_settles_in(
    engine: Engine,
) -> None:
    """What keeps two ends of transactions from waiting for each other."""
    for _ in range(8):
        send_batch(engine, 2)
    receipts = engine.take(16)
    engine.rows("create table touched (n int generated always as identity, batch_id uuid)")
    engine.rows(
        "create function note() returns trigger language plpgsql security definer as"
        " $$ begin insert into public.touched (batch_id) values (new.batch_id); return null; end $$"
    )
    engine.rows("create trigger t after update on queue_worker_data.batches for each row execute function note()")
    engine.settle(others=[outcome(one) for one in receipts[::2]])
    engine.rows("insert into touched (batch_id) values (null)")
    with engine.connection.transaction():
        for one in receipts[:0:-2]:
            engine.settle(others=[outcome(one)])
    touched = [row[0] for row in engine.rows("select batch_id::text from touched order by n")]
    middle = touched.index(None)
    assert touched[:middle] == sorted(touched[:middle])
    assert touched[middle + 1 :] == sorted(touched[middle + 1 :])
    assert len(set(touched)) == 9


def test_transactions_that_hold_members_of_two_batches_crosswise_do_not_wait_for_each_other(
    engine: Engine, dsn: str
) -> None:
    send_batch(engine, 2)
    send_batch(engine, 2)
    a1, a2, b1, b2 = engine.take(4)
    with psycopg.connect(dsn) as one, psycopg.connect(dsn) as two:
        for connection, receipt in ((one, a1), (two, b1), (one, b2), (two, a2)):
            assert Engine(connection).settle(others=[outcome(receipt)]) == {}
    assert len(sent_after(engine)) == 2


def test_two_housekeepers_count_a_member_once(engine: Engine, dsn: str) -> None:
    send_batch(engine, 3)
    engine.rows("select pgmq.delete('work', 1::bigint)")
    engine.rows("alter function queue_worker_data.recount_batches(text) set lock_timeout = '60s'")
    recount = "select queue_worker_data.recount_batches('work')"
    waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    with psycopg.connect(dsn) as first, ThreadPoolExecutor(1) as pool:
        assert first.execute(recount).fetchone() == (1,)
        second = pool.submit(race, dsn, 1, lambda connection, _: connection.execute(recount).fetchone())
        wait_until(lambda: engine.value(waits) == 1)
        first.commit()
        assert second.result(60) == [(0,)]
    assert batch(engine) == (3, 0, 1, False)


def test_housekeeping_beside_settles_counts_nothing_twice(engine: Engine, dsn: str) -> None:
    send_batch(engine, 120)
    receipts = engine.take(120)
    stop = threading.Event()

    def work(connection: psycopg.Connection[Any], number: int) -> None:
        if number == 0:
            while not stop.is_set():
                connection.execute("select queue_worker_data.recount_batches('work')")
            return
        try:
            for one in receipts[number - 1 :: 3]:
                claim_while_settling(connection, [one])
        finally:
            if number == 1:
                stop.set()

    race(dsn, 4, work)
    wait_until(lambda: batch(engine)[3])
    assert (batch(engine), len(sent_after(engine))) == ((120, 120, 0, True), 1)
