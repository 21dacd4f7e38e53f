"""One bad message of a batch never costs its neighbours anything."""

from __future__ import annotations

import math
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from queue_worker import Job, events
from queue_worker.errors import Reject, Retry
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.worker.kit import app_of

pytestmark = pytest.mark.conformance

BAD_PAYLOADS = {
    "sql null": None,
    "null": "null",
    "number": "5",
    "string": '"text"',
    "boolean": "true",
    "array": "[1, 2]",
    "long number": '{"n": 1e5000}',
    "longer number": '{"n": 1e100000}',
    "deep": '{"n": ' + "[" * 1500 + "]" * 1500 + "}",
    "deeper": '{"n": ' + "[" * 6000 + "]" * 6000 + "}",
}

GOOD_PAYLOADS = {
    "empty": "{}",
    "one megabyte": '{"text": "' + "x" * 1_000_000 + '"}',
    "duplicate keys": '{"a": 1, "a": 2}',
    "any script": '{"имя": "名前 😀"}',
    "big integer": '{"n": 123456789012345678901234567890}',
}

HEADERS = [
    "5",
    "null",
    "true",
    '"text"',
    "[1]",
    "[" * 1500 + "]" * 1500,
    '{"n": 1e5000}',
    '{"priority": "high"}',
    '{"priority": 1e300}',
    '{"max_attempts": "x"}',
    '{"max_attempts": 1e5000}',
    '{"max_attempts": -1}',
    '{"timeout_seconds": "soon"}',
    '{"timeout_seconds": -5}',
    '{"retry_delay_seconds": {}}',
    '{"redriven_from": 1e300}',
    '{"key": [1]}',
    '{"key": null}',
    '{"group_key": {"a": 1}}',
    "{}",
    None,
]


def insert(engine: Engine, payload: str | None, headers: str | None = None) -> int:
    return int(
        engine.value(
            "insert into pgmq.q_QUEUE (vt, message, headers) values (clock_timestamp(), %s::jsonb,"
            " %s::jsonb) returning msg_id",
            payload,
            headers,
        )
    )


def drained(engine: Engine) -> None:
    wait_until(lambda: engine.count("queue") == 0, 20, lambda: str(engine.rows("select * from pgmq.q_QUEUE")))


def test_bad_payloads_end_as_invalid_and_all_others_are_done(dsn: str, engine: Engine) -> None:
    seen: list[int] = []
    bad, good = [], []
    for payload in BAD_PAYLOADS.values():
        good.append(insert(engine, "{}"))
        bad.append(insert(engine, payload))
    good += [insert(engine, payload) for payload in GOOD_PAYLOADS.values()]
    with running(dsn, app_of(lambda job: seen.append(job.msg_id), batch_size=50)):
        drained(engine)
    assert sorted(seen) == good
    dead = engine.rows("select msg_id, reason, attempts from queue_worker.dead_letters order by msg_id")
    assert dead == [(one, "invalid", 1) for one in bad]
    assert engine.count("archive") == len(good)


def test_no_header_harms_the_message_it_comes_with(dsn: str, engine: Engine) -> None:
    ids = [insert(engine, "{}", headers) for headers in HEADERS]

    def fail_once(job: Job[dict[str, Any]]) -> None:
        if job.attempt == 1:
            raise ValueError("once")

    with running(dsn, app_of(fail_once, retry=(0,), max_attempts=2, batch_size=50)):
        drained(engine)
    assert engine.count("archive") == len(ids), engine.rows("select * from queue_worker.dead_letters")


def test_a_field_that_is_wrong_is_named_and_its_value_is_not(dsn: str, engine: Engine) -> None:
    class Welcome(BaseModel):
        user_id: int

    def handle(job: Job[Welcome]) -> None: ...

    handle.__annotations__["job"] = Job[Welcome]
    insert(engine, '{"user_id": "hunter2"}')
    with running(dsn, app_of(handle)):
        drained(engine)
    (error,) = engine.rows("select error from queue_worker.dead_letters")[0]
    assert "user_id" in error
    assert "hunter2" not in error


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Hollow(Retry):
    def __init__(self) -> None:
        """Forgets what a Retry must know."""


def cause() -> Exception:
    error = ValueError("outer")
    error.__cause__ = Speechless()
    return error


ERRORS: dict[str, BaseException] = {
    "NUL and surrogates": ValueError("a\x00b\ud800c\udfff"),
    "ten megabytes": ValueError("x" * 10_000_000),
    "without words": Speechless(),
    "wordless cause": cause(),
    "retry without fields": Hollow(),
    "retry in a million years": Retry("later", delay=1e300),
    "retry at no time": Retry("later", delay=math.nan),
    "retry with text": Retry("later", delay="soon"),  # type: ignore[arg-type]
    "rejection with NUL": Reject("\x00no\ud800"),
    "exit": SystemExit(3),
    "interrupt": KeyboardInterrupt(),
    "generator exit": GeneratorExit(),
    "memory": MemoryError(),
    "recursion": RecursionError("deep"),
    "stop": StopIteration(1),
}


def test_whatever_a_handler_raises_is_recorded_and_harms_nobody(dsn: str, engine: Engine) -> None:
    names = {engine.send({"raise": name}): name for name in ERRORS}
    good = [engine.send({}) for _ in range(10)]

    def handle(job: Job[dict[str, Any]]) -> None:
        if "raise" in job.payload:
            raise ERRORS[job.payload["raise"]]

    with running(dsn, app_of(handle, max_attempts=1, batch_size=50)):
        drained(engine)
    dead = dict(engine.rows("select msg_id, error from queue_worker.dead_letters"))
    assert {names[one] for one in dead} == set(ERRORS)
    assert all(0 < len(text) <= 4096 for text in dead.values())
    assert engine.count("archive") == len(good)


def test_a_result_that_cannot_be_stored_is_a_dead_letter_and_its_handler_does_not_run_again(
    dsn: str, engine: Engine
) -> None:
    ids = [engine.send({}) for _ in range(5)]
    engine.rows(f"alter table pgmq.a_work add constraint picky check (msg_id <> {ids[2]})")
    ran: list[int] = []
    with running(dsn, app_of(lambda job: ran.append(job.msg_id), retry=(0,), max_attempts=3, batch_size=50)):
        drained(engine)
    assert engine.count("archive") == 4
    (dead,) = engine.rows("select msg_id, reason, attempts, error from queue_worker.dead_letters")
    assert dead[:3] == (ids[2], "unstored", 1)
    assert sorted(ran) == sorted(ids)
    assert "could not be stored" in dead.error
    assert "picky" in dead.error


def test_results_wait_for_a_database_that_is_in_trouble(dsn: str, engine: Engine) -> None:
    """A disk that is full, here a trigger that says so, charges nobody and runs nothing twice."""
    starts: list[int] = []
    engine.rows(
        "create function full_disk() returns trigger language plpgsql as"
        " $$ begin raise 'disk is full' using errcode = '53100'; end $$"
    )
    engine.rows("create trigger full_disk before insert on pgmq.a_work execute function full_disk()")
    ids = [engine.send({}) for _ in range(30)]
    with events.capture("queue.error") as errors, running(dsn, app_of(lambda job: starts.append(job.msg_id))):
        wait_until(lambda: len(starts) >= 10 and errors)
        engine.rows("drop trigger full_disk on pgmq.a_work")
        drained(engine)
    assert sorted(starts) == ids
    assert engine.count("archive") == 30
    assert engine.value("select count(*) from queue_worker.failures") == 0
    assert len(errors) <= 30, "each is reported once"


def test_a_queue_without_its_table_stands_alone_and_comes_back(dsn: str, engine: Engine) -> None:
    engine.rows("select queue_worker.create_queue('other')")
    with events.capture() as seen, running(dsn, app_of(lambda job: None, "work", "other")):
        wait_until(lambda: ("worker.ready") in [name for name, _ in seen])
        engine.rows("drop table pgmq.q_work")
        wait_until(lambda: [f["queue"] for name, f in seen if name == "queue.missing"] == ["work"])
        engine.rows("select pgmq.send('other', '{}')")
        wait_until(lambda: engine.value("select count(*) from pgmq.a_other") == 1)
        engine.create()
        engine.send({})
        wait_until(lambda: engine.count("archive") == 1)
        wait_until(lambda: [f["queue"] for name, f in seen if name == "queue.back"] == ["work"])


def test_a_message_with_a_key_of_its_own_keeps_it(dsn: str, engine: Engine) -> None:
    keys: list[str] = []

    def handle(job: Job[dict[str, Any]]) -> None:
        keys.append(job.key)
        if len(keys) < 3:
            raise Reject("once more")

    engine.send({})
    with running(dsn, app_of(handle)):
        for count in (1, 2):
            wait_until(lambda count=count: len(keys) == count and engine.count("dead") == 1)
            engine.rows("select queue_worker.redrive('work')")
        drained(engine)
    assert len(set(keys)) == 1


def test_plain_pgmq_consumers_and_the_worker_share_a_queue(dsn: str, db: psycopg.Connection[Any]) -> None:
    db.execute("select pgmq.create('shared')")
    # Taken over by the one who owns it: a worker over REST may not.
    db.execute("select queue_worker.create_queue('shared')")
    db.execute("select pgmq.send('shared', '{}') from generate_series(1, 4)")
    row = db.execute("select msg_id from pgmq.read('shared', 60, 1)").fetchone()
    assert row is not None
    with running(dsn, app_of(lambda job: None, "shared")):
        wait_until(lambda: db.execute("select count(*) from pgmq.a_shared").fetchone() == (3,))
        assert db.execute("select pgmq.delete('shared', %s::bigint)", row).fetchone() == (True,)
