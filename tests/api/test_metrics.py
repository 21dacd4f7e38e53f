"""`/metrics` says what the database says, after several processes and restarts."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from queue_worker.errors import TransportError
from queue_worker.timings import Durations, Timings
from queue_worker.transport.database import PostgresDatabase
from tests.api.served import Client, served
from tests.blackbox.program import Program
from tests.sql.engine import Engine


def samples(client: Client) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels, by the names of these backwards."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items(), reverse=True))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_after_restarts_and_two_processes_the_numbers_are_those_of_the_rows(
    dsn: str, db: psycopg.Connection[Any]
) -> None:
    engine = Engine(db, "email").create()
    program = Program(DATABASE_URL=dsn, QUEUE_WORKER_CYCLE_SECONDS="0.1")
    good, bad = {"to": "ann@example.com", "subject": "x", "text": "y"}, {"to": "nobody"}
    for number in range(20):
        engine.send(bad if number % 10 == 0 else good)
    program.ok("start", "-q", "email", "--burst")
    for number in range(20):
        engine.send(bad if number % 10 == 0 else good)
    program.ok("start", "-q", "email", "--burst", "--processes", "2")
    engine.send(good)
    engine.rows("select queue_worker.pause('email', 'lunch')")
    with served(dsn) as client:
        found = samples(client)
    [counted] = engine.rows("select * from queue_worker.counters() where queue = 'email'")
    assert found["queue_worker_messages_done_total", "email"] == counted.done == engine.count("archive") == 36
    assert found["queue_worker_messages_dead_total", "email"] == counted.dead == engine.count("dead") == 4
    assert found["queue_worker_messages_retried_total", "email"] == counted.retried == 0
    # A payload that does not fit never reaches its handler.
    assert found["queue_worker_duration_seconds_count", "email"] >= 36
    assert (
        found["queue_worker_duration_seconds_bucket", "email", "+Inf"]
        == (found["queue_worker_duration_seconds_count", "email"])
    )
    assert found["queue_worker_pickup_seconds_count", "email"] == 40
    assert found["queue_worker_messages", "waiting", "email"] == 1
    assert found["queue_worker_messages", "dead", "email"] == 4
    assert found["queue_worker_paused", "email"] == 1
    assert found["queue_worker_workers",] == 0


def test_what_was_measured_survives_a_flush_that_failed(dsn: str, db: psycopg.Connection[Any]) -> None:
    durations = Durations()
    timings = Timings()
    timings.begin([("work", durations)])
    database = PostgresDatabase(lambda: dsn)
    try:
        durations.add([0.001, 2000.0])
        db.execute("alter table queue_worker_data.timings rename to away")
        with pytest.raises(TransportError):
            timings.flush(database.transport())
        db.execute("alter table queue_worker_data.away rename to timings")
        durations.add([0.3])
        timings.flush(database.transport())
        timings.flush(database.transport())
    finally:
        timings.end()
        database.close()
    row = db.execute("select counts, total from queue_worker.list_timings()").fetchone()
    assert row is not None
    assert sum(row[0]) == 3
    assert (row[0][0], row[0][6], row[0][15]) == (1, 1, 1)
    assert row[1] == 2000.301
