"""Two environments in one database, over every transport: what one does reaches nothing of the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg_pool import ConnectionPool

from queue_worker import Queue, close, once, schema_name
from queue_worker.errors import QueueWorkerError
from tests.blackbox.program import Program
from tests.helpers import wait_until
from tests.pooler import pooler
from tests.stages import Dsn, environment_of
from tests.supabase.project import project

pytestmark = pytest.mark.full

QUEUES = {"queue_worker": "email", "staging": "letters"}

# An hour between two looks: what is handled was heard of.
JOBS = """
from queue_worker import App, Job

app = App(builtins=False)

@app.processor("QUEUE", cycle=3600, retry=(0,), max_attempts=2)
def handle(job: Job[dict]) -> None:
    job.once(job.key, lambda key: None)
    if job.payload.get("fail"):
        raise ValueError("as asked")
    if job.payload.get("next"):
        job.send("QUEUE", {"from": "QUEUE"})

app.schedule("every 1s", queue="QUEUE", name="tick", payload={"from": "QUEUE"}, misfire="skip")
"""


@pytest.fixture
def both(dsn: str) -> str:
    """A database with two environments: queue `email` is that of `queue_worker`, `letters` that of `staging`."""
    Program(DATABASE_URL=dsn, QUEUE_WORKER_SCHEMA="staging").ok("migrate")
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("select queue_worker.create_queue('email'), staging.create_queue('letters')")
    for queue in QUEUES.values():
        Path(f"jobs_{queue}.py").write_text(JOBS.replace("QUEUE", queue))
    return dsn


@pytest.fixture(params=["direct", "pooler", "rest"])
def program(request: pytest.FixtureRequest, both: str) -> Iterator[Program]:
    """The program, as it reaches the database by each transport."""
    found = Dsn(both)
    with contextlib.ExitStack() as stack:
        if request.param == "pooler":
            front = stack.enter_context(pooler(both, size=8))
            found.worker = {"database_url": front.url, "pooler": "yes"}
        elif request.param == "rest":
            found.worker = stack.enter_context(project(both, schemas="public,queue_worker,staging")).settings()
        yield Program(**environment_of(found), QUEUE_WORKER_LOG_LEVEL="ERROR")


def count(db: psycopg.Connection[Any], *table: str) -> int:
    row = db.execute(sql.SQL("select count(*) from {}").format(sql.Identifier(*table))).fetchone()
    assert row is not None
    return int(row[0])


def test_a_worker_of_each_runs_beside_the_other_and_no_message_crosses(
    program: Program, db: psycopg.Connection[Any]
) -> None:
    with contextlib.ExitStack() as stack:
        for schema, queue in QUEUES.items():
            stack.enter_context(program.running("--app", f"jobs_{queue}:app", QUEUE_WORKER_SCHEMA=schema))
        for schema, queue in QUEUES.items():
            for what in ("next", "fail"):
                db.execute(f"select {schema}.send(%s, jsonb_build_object('from', %s::text, %s::text, true))", [
                    queue, queue, what])  # fmt: skip
        for schema, queue in QUEUES.items():
            # The message, what it sent, and a tick of the schedule; and the one that died after two attempts.
            wait_until(lambda queue=queue: count(db, "pgmq", f"a_{queue}") >= 3, 30)
            wait_until(lambda schema=schema: count(db, schema, "dead_letters") == 1, 30)
            workers = f"select distinct unnest(queues) from {schema}.workers"
            assert wait_until(lambda workers=workers: db.execute(workers).fetchall()) == [(queue,)]
            assert db.execute(f"select distinct queue from {schema}.failures").fetchall() == [(queue,)]
            assert db.execute(f"select distinct message ->> 'from' from pgmq.a_{queue}").fetchall() == [(queue,)]
            assert db.execute(f"select count(*) > 2 from {schema}_data.once").fetchone() == (True,)


def test_the_queue_of_one_is_refused_by_the_other_with_one_line_that_names_its_schema(
    program: Program, db: psycopg.Connection[Any]
) -> None:
    for mine, theirs in (("staging", "queue_worker"), ("queue_worker", "staging")):
        queue = QUEUES[theirs]
        program.ok("send", queue, '{"n": 1}', QUEUE_WORKER_SCHEMA=theirs)
        for command in (
            ["send", queue, "{}"], ["create", queue], ["pause", queue], ["purge", queue, "--yes"],
            ["cancel", queue, "1"], ["drop", queue, "--yes"], ["show", queue, "1"],
            ["start", "--app", f"jobs_{queue}:app"],
        ):  # fmt: skip
            done = program(*command, QUEUE_WORKER_SCHEMA=mine)
            assert f'queue "{queue}" belongs to the environment of schema {theirs}' in done.line, command
            assert done.code == (78 if command[0] == "start" else 1), command
        assert db.execute(f"select read_ct, message from pgmq.q_{queue}").fetchall() == [(0, {"n": 1})]


def test_the_functions_themselves_refuse_it(both: str, db: psycopg.Connection[Any]) -> None:
    db.execute("select queue_worker.send('email', '{\"n\": 1}')")
    for call in (
        "send('email', '{}')", "claim('email', 1, 60, sleep => true)", "claim('email', 1, 60)", "pause('email')",
        "purge('email')", "drop_queue('email')", "create_queue('email')", "cancel('email', 1)", "complete('email', 1)",
        "messages('email')", "archived('email')", "message('email', 1)", "set_rate_limit('email', 1, 1)",
        "prune('email', archive_seconds => 0)",
        "allow_producer('email', 'authenticated')", "schedule('s', 'email', 'every 1h', '{}')",
    ):  # fmt: skip
        with pytest.raises(psycopg.Error) as refused:
            db.execute(f"select * from staging.{call}".encode())
        # Whatever is not refused by name is refused by Postgres: the other owner has no right on the table.
        assert refused.value.sqlstate in ("42P06", "42501"), call
    assert db.execute("select read_ct, message from pgmq.q_email").fetchall() == [(0, {"n": 1})]


def test_status_and_doctor_see_their_own_alone(program: Program, db: psycopg.Connection[Any]) -> None:
    # What the doctor of the first one finds is none of the other's business.
    db.execute("alter table pgmq.q_email set (autovacuum_enabled = off)")
    db.execute("alter table pgmq.q_email disable row level security")
    for schema, queue in QUEUES.items():
        shown = program.ok("status", "--json", QUEUE_WORKER_SCHEMA=schema).json
        assert [one["queue"] for one in shown["queues"]] == [queue]
        for command in (["doctor"], ["doctor", "--security"]):
            done = program(*command, QUEUE_WORKER_SCHEMA=schema)
            assert (done.code, "q_email" in done.out) == ((1, True) if queue == "email" else (0, False)), done.out


def test_a_person_is_erased_in_one_environment_alone(both: str, db: psycopg.Connection[Any]) -> None:
    for schema, queue in QUEUES.items():
        db.execute(f"select {schema}.send('{queue}', '{{\"to\": \"ann@example.com\"}}')")
    done = Program(DATABASE_URL=both, QUEUE_WORKER_SCHEMA="staging").ok("purge-subject", "ann@example.com", "--yes")
    assert done.out == "1 deleted\n"
    assert (count(db, "pgmq", "q_letters"), count(db, "pgmq", "q_email")) == (0, 1)


def test_producers_send_wait_and_fetch_in_the_environment_of_the_settings(
    program: Program, both: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One process has one environment: this one's own comes back at the end.
    monkeypatch.setattr(schema_name, "_name", "staging")
    for name, value in {**program.variables, "QUEUE_WORKER_SCHEMA": "staging"}.items():
        monkeypatch.setenv(name, value)
    letters = Queue("letters")
    try:
        letters.send({"n": 1})
        letters.send_batch([{"n": 2}, {"n": 3}], priority=5)
        for one in letters.fetch(2):
            with one:
                pass
        # Its own connection, whatever the transport.
        (last,) = letters.fetch(1)
        with psycopg.connect(both) as own:
            letters.send({"n": 4}, connection=own)
            last.complete(connection=own)
        once("letters:1", lambda key: None)
        with pytest.raises(QueueWorkerError, match='queue "email" belongs to the environment of schema queue_worker'):
            Queue("email").send({"n": 1})
        with ConnectionPool(both, min_size=1, max_size=1) as pool:
            Queue("letters", database=pool).send({"n": 5})
    finally:
        close()
    assert [count(db, "pgmq", table) for table in ("a_letters", "q_letters", "q_email")] == [3, 2, 0]
    assert (count(db, "staging_data", "once"), count(db, "queue_worker_data", "once")) == (1, 0)
