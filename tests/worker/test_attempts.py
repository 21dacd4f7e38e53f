"""What costs an attempt, what does not, and when the next one comes."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from queue_worker import Job, events
from queue_worker.errors import CallRefused, LeaseLost, Reject, Retry, TransportUnavailable
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.worker.kit import app_of

pytestmark = pytest.mark.conformance


def settled(engine: Engine, *places: str) -> None:
    wait_until(lambda: sum(engine.count(place) for place in places or ("archive", "dead")), 20)


def fails(job: Job[dict[str, Any]]) -> None:
    raise ValueError(f"attempt {job.attempt} of {job.max_attempts}")


def delays(engine: Engine) -> list[int]:
    """The recorded delays of all retries, in whole seconds."""
    return [
        row[0]
        for row in engine.rows(
            "select round(extract(epoch from retry_at - failed_at))::int from queue_worker.failures"
            " where retry_at is not null order by failure_id"
        )
    ]


def run_to_the_end(dsn: str, engine: Engine, handler: Any = fails, **options: Any) -> None:
    """Run a worker until the message is archived or dead, letting no retry wait."""
    with events.capture("message.retried") as retried, running(dsn, app_of(handler, **options)):
        seen = 0
        while not engine.count("archive") + engine.count("dead"):
            wait_until(lambda seen=seen: len(retried) > seen or engine.count("archive") + engine.count("dead"), 20)
            seen = len(retried)
            engine.rows(
                "update pgmq.q_QUEUE set vt = now() where vt > now() + interval '30 s'"
                " and exists (select from queue_worker_data.trouble t where settled_ct = read_ct)"
            )


def test_retries_come_after_60_120_240_480_960_seconds_and_then_it_is_a_dead_letter(dsn: str, engine: Engine) -> None:
    engine.send({})
    run_to_the_end(dsn, engine)
    print("retries after", *delays(engine), "seconds")
    assert delays(engine) == [60, 120, 240, 480, 960]
    assert engine.rows("select attempt, kind from queue_worker.failures order by failure_id") == [
        *((n, "failed") for n in range(1, 6)),
        (6, "dead"),
    ]
    (dead,) = engine.rows("select reason, attempts, error from queue_worker.dead_letters")
    assert dead[:2] == ("attempts", 6)
    assert dead.error.startswith("ValueError: attempt 6 of 6")
    assert engine.trouble(1) is None


def test_a_policy_of_the_queue_is_followed(dsn: str, engine: Engine) -> None:
    engine.send({})
    run_to_the_end(dsn, engine, retry=(31, 45, 90), max_attempts=5)
    assert delays(engine) == [31, 45, 90, 90]


def test_the_headers_of_a_message_beat_the_policy_of_its_queue(dsn: str, engine: Engine) -> None:
    engine.rows("select queue_worker.send('work', '{}', max_attempts => 3, retry_delay_seconds => 77)")
    run_to_the_end(dsn, engine)
    assert delays(engine) == [77, 77]
    assert engine.rows("select attempts from queue_worker.dead_letters") == [(3,)]


def test_a_handler_steers_by_retry_and_reject(dsn: str, engine: Engine) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        if job.attempt == 1:
            raise Retry("busy", delay=333)
        raise Reject("wrong account")

    engine.send({})
    run_to_the_end(dsn, engine, handle)
    assert delays(engine) == [333]
    assert engine.rows("select reason, attempts, error from queue_worker.dead_letters") == [
        ("rejected", 2, "wrong account")
    ]


def test_success_forgets_the_failures_before_it(dsn: str, engine: Engine) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        if job.attempt < 3:
            raise ValueError("not yet")

    engine.rows("select pgmq.send('work', '{}')")
    run_to_the_end(dsn, engine, handle, retry=(0,))
    assert engine.places(1) == ["archive"]
    assert engine.trouble(1) is None


INFRASTRUCTURE = {
    "away": TransportUnavailable("away"),
    "lost": LeaseLost("lost"),
    "deadlock": CallRefused("deadlock", "40P01"),
    "serialization": CallRefused("serialization", "40001"),
    "full": CallRefused("full", "53100"),
    "connections": CallRefused("too many", "53300"),
    "shutdown": CallRefused("shutdown", "57P01"),
    "read only": CallRefused("read only", "25006"),
}


def test_trouble_of_the_infrastructure_costs_no_attempt(dsn: str, engine: Engine) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        assert job.attempt == 1
        name = job.payload["error"]
        runs.append(name)
        if runs.count(name) < 3:
            raise INFRASTRUCTURE[name]

    runs: list[str] = []
    for name in INFRASTRUCTURE:
        engine.send({"error": name})
    with events.capture("message.released") as released, running(dsn, app_of(handle, max_attempts=1)):
        for count in (1, 2):
            wait_until(lambda count=count: len(released) == count * len(INFRASTRUCTURE), 20)
            engine.rows("update pgmq.q_work set vt = now()")
        wait_until(lambda: engine.count("archive") == len(INFRASTRUCTURE), 20)
    assert sorted(runs) == sorted([*INFRASTRUCTURE] * 3)
    assert engine.value("select count(*) from queue_worker.failures") == 0


def test_an_error_of_sql_is_the_handlers_own_and_costs_an_attempt(dsn: str, engine: Engine) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        job.call("no_such.function")

    engine.send({})
    run_to_the_end(dsn, engine, handle, max_attempts=1)
    assert "does not exist" in engine.value("select error from queue_worker.dead_letters")


def test_a_message_sent_by_plain_pgmq_with_a_delay_is_taken_when_it_is_due(
    dsn: str, engine: Engine, db: psycopg.Connection[Any]
) -> None:
    db.execute("select pgmq.send('work', '{}', 1)")
    with events.capture("message.done") as done, running(dsn, app_of(lambda job: None, cycle=60)):
        # Long before the cycle ends: the empty claim was told when the message is due.
        wait_until(lambda: done, 15)
    assert engine.places(1) == ["archive"]


def test_a_job_can_send_on(dsn: str, engine: Engine) -> None:
    engine.rows("select queue_worker.create_queue('next')")
    engine.send({"n": 1})
    with running(dsn, app_of(lambda job: job.send("next", {"from": job.msg_id}, delay_seconds=60))):
        settled(engine)
    assert engine.rows("select message from pgmq.q_next") == [({"from": 1},)]
