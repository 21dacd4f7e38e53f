"""What a claim takes, in which order, and how little it reads for it."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.sql.engine import Engine, Receipt, columns


def buffers(engine: Engine, query: str, *params: Any) -> int:
    """How many pages a statement touched, those of the functions below it included."""
    plan = engine.value(f"explain (analyze, buffers, format json) {query}", *params)
    top = (plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"]
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])


def claim_buffers(engine: Engine, count: int = 10) -> int:
    return buffers(engine, "select * from queue_worker.claim('work', %s, 60)", count)


def test_messages_are_claimed_in_order_of_their_due_time(engine: Engine) -> None:
    engine.fill(6)
    engine.rows("update pgmq.q_work set vt = now() - make_interval(mins => (array[3, 6, 1, 5, 2, 4])[msg_id])")
    assert [engine.take_one()[0] for _ in range(6)] == [2, 4, 6, 1, 5, 3]
    assert engine.claim() == []


def test_what_is_delayed_or_in_flight_is_left_alone(engine: Engine) -> None:
    engine.fill(4)
    engine.take(2)
    engine.rows("update pgmq.q_work set vt = now() + interval '1 h' where msg_id = 3")
    assert [one[0] for one in engine.take(10)] == [4]


def test_a_claim_hides_its_messages_for_the_lease_and_raises_read_ct(engine: Engine) -> None:
    msg_id = engine.send({"a": 1}, {"h": 2})
    (row,) = engine.claim(lease=90)
    assert (row.msg_id, row.read_ct) == (msg_id, 1)
    assert (json.loads(row.payload), json.loads(row.headers)) == ({"a": 1}, {"h": 2})
    assert engine.value("select vt - clock_timestamp() between interval '80 s' and interval '90 s' from pgmq.q_work")


def test_claims_at_once_share_no_message(dsn: str, engine: Engine) -> None:
    engine.fill(200)
    barrier = threading.Barrier(4)

    def claim(number: int) -> list[Receipt]:
        with psycopg.connect(dsn, autocommit=True) as connection:
            barrier.wait(10)
            return [one for _ in range(8) for one in Engine(connection).take(10, worker=str(number))]

    with ThreadPoolExecutor(4) as pool:
        found = [one[0] for part in pool.map(claim, range(4)) for one in part]
    assert len(found) == len(set(found))
    assert len(found) + len(engine.take(200)) == 200


def test_delayed_messages_in_front_cost_a_claim_nothing(engine: Engine) -> None:
    def touched() -> int:
        engine.rows("insert into pgmq.q_work (vt, message) select clock_timestamp(), '{}' from generate_series(1, 10)")
        # More than there are: a filter that cannot use the index would go on through the delayed ones.
        return claim_buffers(engine, 20)

    touched()
    alone = touched()
    engine.rows(
        "insert into pgmq.q_work (vt, message) select now() + interval '1 day', '{}' from generate_series(1, 20000)"
    )
    assert touched() <= alone + 60
    engine.rows("analyze pgmq.q_work")
    assert touched() <= alone + 60
    assert engine.value("select count(*) from pgmq.q_work where read_ct > 0") == 40


def test_a_queue_that_grows_behind_a_warm_connection_is_still_read_by_its_index(engine: Engine) -> None:
    engine.rows("alter table pgmq.q_work set (autovacuum_enabled = false)")
    for _ in range(12):
        engine.claim(100, sleep=True)
        engine.settle(done=[(1, 1, engine.value("select now()"))])
        engine.extend([(1, 1, engine.value("select now()"))])
    engine.rows(
        "insert into pgmq.q_work (vt, message)"
        ' select clock_timestamp(), \'{"filler": "some text to make the row longer"}\''
        " from generate_series(1, 200000)"
    )
    pages = engine.value("select pg_relation_size('pgmq.q_work') / 8192")
    assert pages > 2000
    extend = "select * from queue_worker.extend('work', %s::bigint[], %s::int[], %s::timestamptz[], 60)"
    settle = "select * from queue_worker.settle('work', %s::bigint[], %s::int[], %s::timestamptz[])"
    claimed, extended, settled = [], [], []
    for _ in range(3):
        claimed.append(claim_buffers(engine, 20))
        arrays = columns(engine.take(20))
        extended.append(buffers(engine, extend, *arrays))
        settled.append(buffers(engine, settle, *arrays))
    # Measured: 13 pages a message claimed, 22 extended; a sequential scan would touch every page of the table, every
    # time. The least of three: DDL beside it makes the first reread the catalogue (992 pages a claim instead of 242).
    assert max(min(claimed), min(extended), min(settled)) < 800
    assert engine.count("archive") == 60


def test_a_paused_queue_gives_nothing_but_is_settled(engine: Engine) -> None:
    engine.fill(2)
    held = engine.take_one()
    engine.rows("select queue_worker.pause('work', 'because')")
    assert [row.kind for row in engine.claim()] == ["paused"]
    assert engine.settle(done=[held]) == {}
    engine.rows("select queue_worker.resume('work')")
    assert len(engine.take(10)) == 1


def test_a_missing_queue_is_an_error_of_the_claim_alone(engine: Engine) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        Engine(engine.connection, "nowhere").claim()
    engine.fill(1)
    held = engine.take_one()
    engine.rows("alter table pgmq.q_work rename to q_elsewhere")
    rows = settle_claim(engine, [held])
    assert [(row.kind, row.msg_id, row.detail[:5]) for row in rows] == [("error", 1, "42P01"), ("error", None, "42P01")]


def settle_claim(engine: Engine, done: list[Receipt], count: int = 10) -> list[Any]:
    return engine.rows(
        "select * from queue_worker.settle_claim('work', %s::bigint[], %s::int[], %s::timestamptz[], 'archive',"
        " '{}', '{}', '{}', '{}', '{}', '{}', '{}', %s, 60, 0, 5, 'w', true)",
        *columns(done),
        count,
    )


def test_an_error_of_the_claim_never_undoes_the_settles_of_its_round_trip(engine: Engine) -> None:
    engine.fill(2)
    held = engine.take_one()
    engine.rows("create function boom() returns trigger language plpgsql as $$ begin raise 'boom'; end $$")
    engine.rows("create trigger boom before update on pgmq.q_work for each row execute function boom()")
    rows = settle_claim(engine, [held])
    assert [(row.kind, row.msg_id, row.detail) for row in rows] == [("error", None, "P0001: boom")]
    assert engine.places(1) == ["archive"]


def test_a_round_trip_settles_and_claims(engine: Engine) -> None:
    engine.fill(2)
    rows = settle_claim(engine, [engine.take_one()])
    assert [(row.kind, row.msg_id) for row in rows] == [("job", 2)]
    assert engine.places(1) == ["archive"]


def test_an_empty_claim_tells_when_the_next_message_is_due(engine: Engine) -> None:
    assert engine.claim(sleep=True) == []
    engine.fill(2)
    engine.rows("update pgmq.q_work set vt = clock_timestamp() + interval '90 s' * msg_id")
    assert engine.claim(sleep=False) == []
    (row,) = engine.claim(sleep=True)
    assert row.kind == "next"
    assert 60 < float(row.detail) <= 90


def test_a_message_that_is_never_due_does_not_disturb_a_claim(engine: Engine) -> None:
    engine.fill(2)
    engine.rows("update pgmq.q_work set vt = case msg_id when 1 then 'infinity' else '-infinity' end::timestamptz")
    assert engine.value("select waiting from queue_worker.queues") == 1
    assert [one[0] for one in engine.take(10, sleep=True)] == [2]
    engine.rows("delete from pgmq.q_work where msg_id = 2")
    assert engine.claim(sleep=True) == []
    assert engine.value("select oldest_seconds from queue_worker.queues") is None


def sleepers(engine: Engine) -> list[str]:
    return [
        row[0]
        for row in engine.rows(
            "select worker from queue_worker_data.sleepers where queue = 'work' and until > now() order by worker"
        )
    ]


def test_a_worker_that_finds_nothing_lies_down_and_gets_up_with_the_next_message(engine: Engine) -> None:
    assert engine.claim(worker="a", sleep=True) == []
    assert engine.claim(worker="b", sleep=True) == []
    assert engine.claim(worker="c", sleep=False) == []
    assert sleepers(engine) == ["a", "b"]
    engine.fill(1)
    assert len(engine.take(worker="a", sleep=True)) == 1
    assert sleepers(engine) == ["b"]
    engine.rows("select queue_worker.sign_off('b')")
    assert sleepers(engine) == []


def test_an_idle_worker_writes_its_row_once_and_not_with_every_look(engine: Engine) -> None:
    engine.claim(sleep=True)
    first = engine.rows("select ctid, until from queue_worker_data.sleepers")
    for _ in range(5):
        engine.claim(sleep=True)
    assert engine.rows("select ctid, until from queue_worker_data.sleepers") == first
    engine.rows("update queue_worker_data.sleepers set until = now()")
    engine.claim(sleep=True)
    assert sleepers(engine) == ["w"]


@pytest.mark.parametrize(
    "send",
    [
        "select queue_worker.send('work', '{}')",
        "select pgmq.send('work', '{}')",
        "select * from pgmq.send_batch('work', array['{}', '{}']::jsonb[])",
    ],
)
def test_a_send_notifies_only_while_somebody_sleeps(dsn: str, engine: Engine, send: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute("listen queue_worker")
        engine.rows(send)
        engine.take(10)
        engine.claim(sleep=True)
        engine.rows(send)
        engine.rows("select pg_notify('queue_worker', 'end')")
        # Notifications arrive in order of commit, so 'end' comes after all of them.
        heard = [note.payload for note in listener.notifies(timeout=10, stop_after=2)]
        assert heard == ["work", "end"]
        engine.rows("update queue_worker_data.sleepers set until = now()")
        engine.rows(send)
        engine.rows("select pg_notify('queue_worker', 'end')")
        assert [note.payload for note in listener.notifies(timeout=10, stop_after=1)] == ["end"]
