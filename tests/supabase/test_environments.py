"""A second environment in one database, under another schema name: nothing crosses, one goes without the other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker import migrate, schema_name
from tests.blackbox.program import Program
from tests.helpers import wait_until
from tests.supabase.project import project

pytestmark = pytest.mark.full

JOBS = """
from queue_worker import App, Job

app = App(builtins=False)

@app.processor("QUEUE", retry=(0,), results=True, cycle=0.2)
def handle(job: Job[dict]) -> str:
    if job.attempt == 1:
        raise ValueError("once")
    job.finish("public.note", env="ENV")
    return "ENV"
"""

NOTE = """
create table if not exists public.notes (env text not null);
create or replace function public.note(env text) returns void language sql as 'insert into public.notes values (env)';
grant insert on public.notes to service_role;
grant execute on function public.note to service_role;
"""


def environment(program: Program, name: str) -> None:
    """Migrate, make a queue and a module of jobs."""
    program.ok("migrate")
    program.ok("create", f"{name}-mail")
    Path(f"{name}.py").write_text(JOBS.replace("QUEUE", f"{name}-mail").replace("ENV", name))


@pytest.fixture
def two(dsn: str, db: psycopg.Connection[Any]) -> tuple[Program, Program]:
    """The programs of two environments; the second one's schema is `staging`."""
    db.execute(NOTE)
    usual, staging = Program(DATABASE_URL=dsn), Program(DATABASE_URL=dsn, QUEUE_WORKER_SCHEMA="staging")
    environment(usual, "live")
    environment(staging, "staging")
    for schema in ("queue_worker", "staging"):
        db.execute(f"select {schema}.allow_function('public.note')".encode())
    return usual, staging


def test_nothing_crosses(two: tuple[Program, Program], db: psycopg.Connection[Any], dsn: str) -> None:
    usual, staging = two
    assert usual.ok("send", "live-mail", "{}").out == "1\n"
    assert staging.ok("send", "staging-mail", "{}").out == "1\n"
    with project(dsn, schemas="queue_worker,staging") as made:
        over = {"SUPABASE_URL": made.url, "SUPABASE_SERVICE_ROLE_KEY": made.service_key}
        # One over its own connection, the other one over REST.
        usual.ok("start", "--app", "live:app", "--burst")
        rest = Program(**over, QUEUE_WORKER_SCHEMA="staging")
        rest.ok("start", "--app", "staging:app", "--burst")
        assert rest.ok("doctor", "--security").out.endswith("nothing is wrong\n")
        shown = rest.ok("show", "staging-mail", "1", "--json").json
        assert json.dumps("staging") in json.dumps(shown)
    assert sorted(db.execute("select env from public.notes").fetchall()) == [("live",), ("staging",)]
    for schema, queue in (("queue_worker_data", "live-mail"), ("staging_data", "staging-mail")):
        assert db.execute(f"select queue from {schema}.failures".encode()).fetchall() == [(queue,)]
    for program in two:
        assert program.ok("doctor", "--json").json["findings"] == []
        assert program.ok("doctor", "--security").out.endswith("nothing is wrong\n")


def test_a_producer_with_its_own_connection_sends_there(two: tuple[Program, Program], dsn: str) -> None:
    _, staging = two
    script = """
import sys
import psycopg
from queue_worker import Queue
with psycopg.connect(sys.argv[1]) as connection:
    print(Queue("staging-mail").send({"n": 1}, connection=connection))
"""
    environment = staging.environment()
    del environment["DATABASE_URL"]
    done = subprocess.run([sys.executable, "-c", script, dsn], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1\n", "")
    assert staging.ok("show", "staging-mail", "1", "--json").json


def test_a_queue_has_one_environment(two: tuple[Program, Program]) -> None:
    _, staging = two
    done = staging("create", "live-mail")
    assert done.code != 0
    assert 'queue "live-mail" belongs to the environment of schema queue_worker' in done.err
    Path("thief.py").write_text(JOBS.replace("QUEUE", "live-mail"))
    done = staging("start", "--app", "thief:app", "--burst", QUEUE_WORKER_LOG_LEVEL="ERROR")
    assert done.code == 78
    assert 'queue "live-mail" belongs to the environment of schema queue_worker' in done.err


def test_notify_wakes_the_workers_of_its_environment(two: tuple[Program, Program], db: psycopg.Connection[Any]) -> None:
    _, staging = two
    with staging.running("--app", "staging:app", QUEUE_WORKER_CYCLE_SECONDS="60") as worker:
        worker.ready()
        listening = "select 1 from pg_stat_activity where query = 'listen \"staging\"' and datname = current_database()"
        wait_until(lambda: db.execute(listening).fetchone())
        db.execute("select staging.send('staging-mail', '{}')")
        wait_until(lambda: db.execute("select 1 from public.notes").fetchone(), 20)


def test_one_is_removed_without_the_other(two: tuple[Program, Program], db: psycopg.Connection[Any]) -> None:
    usual, staging = two
    usual.ok("send", "live-mail", "{}")
    staging.ok("send", "staging-mail", "{}")
    staging.ok("migrate", "--uninstall", "--yes")
    schemas = "select nspname from pg_namespace where nspname in ('queue_worker', 'staging', 'staging_data')"
    assert db.execute(schemas).fetchall() == [("queue_worker",)]
    assert db.execute("select count(*) from pgmq.read('staging-mail', 0, 10)").fetchone() == (1,)
    usual.ok("start", "--app", "live:app", "--burst")
    assert db.execute("select env from public.notes").fetchall() == [("live",)]
    assert usual.ok("doctor", "--security").out.endswith("nothing is wrong\n")


@pytest.mark.parametrize("name", ["Staging", "a b", "x" * 42, "1st", "pg-data"])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    done = Program(QUEUE_WORKER_SCHEMA=name, DATABASE_URL="postgresql://localhost/x")("migrate", "--print")
    assert done.code == 78
    assert "QUEUE_WORKER_SCHEMA" in done.line


def test_a_login_of_that_name_is_not_made_the_workers_role(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as db:
        db.execute("create role an_app login")
        done = Program(DATABASE_URL=empty_dsn, QUEUE_WORKER_SCHEMA="an_app")("migrate")
        assert done.code == 78
        assert "QUEUE_WORKER_SCHEMA=an_app: the worker's role is called like the schema" in done.err
        assert db.execute("select to_regnamespace('an_app')").fetchone() == (None,)
        db.execute("drop role an_app")


def test_all_that_is_printed_has_the_other_name() -> None:
    text = Program(QUEUE_WORKER_SCHEMA="staging").ok("migrate", "--print").out
    assert "create schema if not exists staging_data;" in text
    for word in ("queue_worker.", "queue_worker_data", "'queue_worker'"):
        assert word not in text
    # What is shared keeps its name.
    assert "queue_worker_wake" in text
    assert "queue_owner" in text


def test_the_usual_name_changes_nothing() -> None:
    text = (migrate.sql_dir() / "0022_api.sql").read_text()
    assert schema_name.current() == "queue_worker"
    assert schema_name.renamed(text) is text
