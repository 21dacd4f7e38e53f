"""What operators call: queues, redrive, a look inside, pause, tidying up."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.sql.engine import Engine


def test_dead_letters_of_a_dropped_queue_stay_discardable(engine: Engine) -> None:
    bury(engine)
    engine.rows("drop table pgmq.q_work cascade")
    with pytest.raises(psycopg.errors.UndefinedTable, match='queue "work" does not exist'):
        engine.rows("select queue_worker.redrive('work')")
    assert engine.value("select queue_worker.discard('work')") == 1
    with pytest.raises(psycopg.errors.UndefinedTable, match='queue "work" does not exist'):
        engine.rows("select queue_worker.discard('work')")


def test_a_partitioned_queue_is_refused(engine: Engine) -> None:
    # As pgmq.create_partitioned makes it; that function itself needs the extension pg_partman.
    engine.rows("create table pgmq.q_parts (like pgmq.q_work including defaults) partition by range (msg_id)")
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="partitioned queues are not available"):
        engine.rows("select queue_worker.create_queue('parts')")


@pytest.mark.parametrize(("function", "value"), [("make_queue", "lock_timeout=5s"), ("prune", "lock_timeout=1s")])
def test_no_call_waits_for_a_lock_without_end(engine: Engine, function: str, value: str) -> None:
    assert value in engine.value(
        "select proconfig from pg_proc where proname = %s and pronamespace = 'queue_worker_data'::regnamespace",
        function,
    )


def test_messages_are_narrowed_down_before_they_are_counted(engine: Engine) -> None:
    engine.fill(1200)
    running = [one[0] for one in engine.take(3)]
    engine.rows("update pgmq.q_work set vt = now() + interval '1 h' where msg_id = 700")
    engine.rows("update pgmq.q_work set vt = now() - interval '1 d' where msg_id > 1100")
    newest = engine.rows("select msg_id from queue_worker.messages('work', 10, newest => true)")
    assert [row.msg_id for row in newest] == list(range(1200, 1190, -1))
    for state, expected in (("running", running), ("delayed", [700])):
        rows = engine.rows("select msg_id, state from queue_worker.messages('work', state => %s)", state)
        assert [tuple(row) for row in rows] == [(msg_id, state) for msg_id in expected]
    rows = engine.rows("select msg_id, state from queue_worker.messages('work', 2, 'running', true)")
    assert rows == [(running[2], "running"), (running[1], "running")]
    rows = engine.rows("select distinct state from queue_worker.messages('work', 5000, 'waiting')")
    assert rows == [("waiting",)]
    assert engine.value("select count(*) from queue_worker.messages('work', 5000, 'waiting')") == 1196
    assert engine.value("select min(msg_id) from queue_worker.messages('work', 100)") == 1101


def test_an_unknown_state_is_refused(engine: Engine) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="waiting, delayed or running, not 'dead'"):
        engine.rows("select * from queue_worker.messages('work', state => 'dead')")


def test_workers_that_make_a_queue_at_the_same_time_make_one(dsn: str, engine: Engine) -> None:
    barrier = threading.Barrier(6)

    def create(_: int) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            barrier.wait(10)
            Engine(connection, "fresh").create()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(create, range(6)))
    assert engine.value("select count(*) from pg_trigger where tgname = 'queue_worker_wake'") == 2


def test_a_queue_that_pgmq_made_is_taken_over_with_what_it_holds(engine: Engine) -> None:
    engine.rows("select pgmq.create('old')")
    engine.rows("select pgmq.send('old', '{}')")
    old = Engine(engine.connection, "old").create()
    assert len(old.take(5, sleep=True)) == 1


def bury(engine: Engine, payload: Any = None, headers: Any = None) -> int:
    msg_id = engine.send(payload, headers)
    engine.settle(others=[(engine.take_one(suspects=1), "dead", 0, "rejected", "why")])
    return msg_id


def test_a_redriven_message_keeps_its_payload_headers_key_and_history(engine: Engine) -> None:
    msg_id = bury(engine, {"a": 1}, {"max_attempts": 2})
    enqueued_at = engine.value("select enqueued_at::text from queue_worker.dead_letters")
    dead_id = engine.value("select dead_id from queue_worker.dead_letters")
    assert engine.value("select queue_worker.redrive('work')") == 1
    (row,) = engine.rows("select * from queue_worker.messages('work')")
    assert (row.payload, row.attempt, row.state) == ({"a": 1}, 1, "waiting")
    assert row.headers.pop("first_enqueued_at")[:19] == enqueued_at.replace(" ", "T")[:19]
    key = row.headers.pop("key")
    assert key.startswith(f"work:{msg_id}:")
    assert row.headers == {"max_attempts": 2, "redriven_from": dead_id}
    assert [
        f["error"] for f in engine.rows("select * from queue_worker.message('work', %s)", row.msg_id)[0].failures
    ] == ["why"]
    again = bury_claimed(engine)
    engine.rows("select queue_worker.redrive('work')")
    (row,) = engine.rows("select * from queue_worker.messages('work')")
    assert (row.headers["key"], again) == (key, dead_id)


def bury_claimed(engine: Engine) -> int:
    engine.settle(others=[(engine.take_one(), "dead", 0, "rejected", "why")])
    return int(engine.value("select redriven_from from queue_worker.dead_letters"))


def test_two_redrives_at_once_give_one_message(dsn: str, engine: Engine) -> None:
    bury(engine)
    with psycopg.connect(dsn) as first, psycopg.connect(dsn) as second:
        assert Engine(first).value("select queue_worker.redrive('work')") == 1
        assert Engine(second).value("select queue_worker.redrive('work')") == 0
    assert (engine.count("queue"), engine.count("dead")) == (1, 0)


def test_any_headers_survive_dead_letter_and_redrive(engine: Engine) -> None:
    cases = [None, 5, [], "x", {"redriven_from": 1e300}, {"redriven_from": "x"}, {"key": None}]
    for headers in cases:
        bury(engine, headers=headers)
        assert engine.value("select redriven_from from queue_worker.dead_letters") is None
        assert engine.value("select queue_worker.redrive('work')") == 1
        engine.settle(done=[engine.take_one()])
    assert engine.count("archive") == len(cases)


def test_redrive_and_discard_take_the_ones_named_and_leave_the_rest(engine: Engine) -> None:
    for _ in range(5):
        bury(engine)
    ids = [row[0] for row in engine.rows("select dead_id from queue_worker.dead_letters order by 1")]
    waiting = engine.send()
    assert engine.value("select queue_worker.redrive('work', %s::bigint[])", ids[:1]) == 1
    assert engine.value("select queue_worker.redrive('work', max_count => 1)") == 1
    assert engine.value("select queue_worker.discard('work', %s::bigint[])", ids[2:3]) == 1
    assert engine.value("select queue_worker.discard('work')") == 2
    assert engine.places(waiting) == ["queue"]
    assert (engine.count("queue"), engine.count("dead")) == (3, 0)
    assert [row.action for row in engine.rows("select action from queue_worker.audit order by audit_id")] == [
        "redrive",
        "redrive",
        "discard",
        "discard",
    ]


def test_a_message_is_found_in_every_state(engine: Engine) -> None:
    def state(msg_id: int) -> str:
        return str(engine.value("select state from queue_worker.message('work', %s)", msg_id))

    msg_id = engine.send()
    assert state(msg_id) == "waiting"
    held = engine.take_one()
    assert state(msg_id) == "running"
    engine.settle(others=[(held, "failed", 600, "", "oops")])
    assert state(msg_id) == "delayed"
    (row,) = engine.rows("select * from queue_worker.message('work', %s)", msg_id)
    assert (row.attempt, row.error, row.failures[0]["kind"]) == (2, "oops", "failed")
    assert engine.rows("select waiting, delayed, running, dead from queue_worker.queues") == [(0, 1, 0, 0)]
    engine.age()
    held = engine.take_one()
    assert engine.rows("select waiting, delayed, running, dead from queue_worker.queues") == [(0, 0, 1, 0)]
    engine.settle(done=[held])
    assert state(msg_id) == "archived"
    assert state(bury(engine)) == "dead"
    assert engine.rows("select * from queue_worker.message('work', 99)") == []


def test_a_queue_whose_table_is_gone_does_not_hide_the_others(engine: Engine) -> None:
    engine.rows("select queue_worker.create_queue('broken')")
    engine.rows("drop table pgmq.q_broken cascade")
    assert [row.queue for row in engine.rows("select queue from queue_worker.queues")] == ["work"]


def test_pause_keeps_its_time_and_resume_ends_it(engine: Engine) -> None:
    engine.rows("select queue_worker.pause('work', 'first')")
    since = engine.value("select paused_at from queue_worker.queues")
    engine.rows("select queue_worker.pause('work', 'second')")
    assert engine.rows("select paused_at, pause_reason from queue_worker.queues") == [(since, "second")]
    engine.rows("select queue_worker.resume('work')")
    assert engine.rows("select paused_at, pause_reason from queue_worker.queues") == [(None, None)]


def test_pruning_takes_what_is_old_and_nothing_else(engine: Engine) -> None:
    engine.fill(4)
    engine.settle(done=engine.take(2), others=[(engine.take_one(), "failed", 0, "", "e")])
    engine.rows("update pgmq.a_work set archived_at = now() - interval '8 d' where msg_id = 1")
    engine.rows(
        "insert into queue_worker_data.trouble (queue, msg_id, enqueued_at, updated_at)"
        " values ('work', 77, now(), now() - interval '2 d')"
    )
    engine.rows("update queue_worker_data.failures set failed_at = now() - interval '31 d'")
    engine.rows("update queue_worker_data.trouble set updated_at = now() - interval '2 d'")
    assert engine.value("select queue_worker.prune('work', 604800)") == 1
    assert (engine.count("archive"), engine.count("queue")) == (1, 2)
    assert engine.rows("select msg_id from queue_worker_data.trouble") == [(3,)]
    assert engine.value("select count(*) from queue_worker.failures") == 0


def test_a_worker_is_listed_while_it_lives(engine: Engine) -> None:
    for busy in (0, 2):
        engine.rows("select queue_worker.heartbeat('w', 'h', 1, '0.1', '{work}', 5, %s)", busy)
    assert engine.rows("select worker, busy, alive from queue_worker.workers") == [("w", 2, True)]
    engine.rows("update queue_worker_data.workers set last_seen = now() - interval '1 min'")
    assert engine.rows("select alive from queue_worker.workers") == [(False,)]
    engine.rows("select queue_worker.sign_off('w')")
    assert engine.rows("select * from queue_worker.workers") == []
