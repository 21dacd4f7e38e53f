"""The name of a second environment: what may be one, what it may not take from others, and how it goes away."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker import schema_name
from queue_worker.migrate_files import BOOTSTRAP, NAME_GUARD, sql_dir
from tests.blackbox.program import Program
from tests.supabase.installing import Server, install_pgmq, supabase, tcp

pytestmark = pytest.mark.full


def staging(url: str) -> Program:
    return Program(DATABASE_URL=url, QUEUE_WORKER_SCHEMA="staging")


def psql(server: Server, url: str, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [server.bin_dir / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", url],
        input=script,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", ["pg_x", "queue_worker_data", "live_data"])
def test_a_name_that_is_somebody_elses_by_rule_is_refused(name: str) -> None:
    done = Program(QUEUE_WORKER_SCHEMA=name, DATABASE_URL="postgresql://localhost/x")("migrate", "--print")
    assert done.code == 78
    assert f"QUEUE_WORKER_SCHEMA {schema_name.RULE}" in done.line


@pytest.mark.parametrize(
    ("name", "taken", "line"),
    [
        ("shop", "create schema shop; create table shop.orders (id int)", "schema shop is there already"),
        (
            "shop",
            "create schema shop_data; create table shop_data.orders (id int)",
            "schema shop_data is there already",
        ),
        ("public", "create table public.orders (id int)", "schema public is there already"),
        ("shop", "create role shop nologin", "role shop is there already"),
        ("shop", "create role shop_owner nologin", "role shop_owner is there already"),
        ("user", "select 1", "user is a word of SQL"),
    ],
)
def test_what_belongs_to_others_is_neither_used_nor_given_away(
    server_of_ones_own: Server, name: str, taken: str, line: str
) -> None:
    url = server_of_ones_own.database()
    install_pgmq(url)
    program = Program(DATABASE_URL=url, QUEUE_WORKER_SCHEMA=name)
    state = (
        "select array(select nspname || nspowner || coalesce(nspacl::text, '') from pg_namespace order by 1),"
        " array(select oid || relname || relowner || coalesce(relacl::text, '') from pg_class"
        " where relkind = 'r' order by 1), array(select rolname from pg_roles order by 1)"
    )
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(taken.encode())
        before = db.execute(state).fetchone()
        done = program("migrate")
        assert done.code == 78
        assert f"{line}" in done.line
        assert "choose another QUEUE_WORKER_SCHEMA" in done.line
        printed = psql(server_of_ones_own, url, program.ok("migrate", "--print").out)
        assert printed.returncode != 0
        if name != "user":
            assert line in printed.stderr
        assert program("migrate", "--uninstall", "--yes").code != 0
        assert db.execute(state).fetchone() == before


def test_the_role_of_an_environment_of_that_name_in_another_database_is_shared(server_of_ones_own: Server) -> None:
    first = server_of_ones_own.database()
    server_of_ones_own.admin.execute("create database second owner login")
    second = server_of_ones_own.url("login", "second")
    for url in (first, second):
        staging(url).ok("migrate")
    staging(first).ok("migrate", "--uninstall", "--yes")
    staging(second).ok("create", "letters")
    assert staging(second).ok("doctor", "--security").out.endswith("nothing is wrong\n")


def test_without_the_right_to_make_roles_a_second_environment_is_refused_with_one_line(
    server_of_ones_own: Server,
) -> None:
    url = server_of_ones_own.database(options="nocreaterole")
    Program(DATABASE_URL=url).ok("migrate")
    done = staging(url)("migrate")
    assert done.code == 78
    assert done.err == (
        "queue-worker: schema queue_worker belongs to login too: a second environment in one database needs roles of"
        " its own (Migrate as a role that may create roles.)\n"
    )
    assert Program(DATABASE_URL=url).ok("doctor").out.endswith("nothing is wrong\n")


def test_uninstall_takes_one_environment_and_keeps_what_somebody_made_as_one_of_its_roles(
    server_of_ones_own: Server,
) -> None:
    url = server_of_ones_own.database(options="createrole createdb")
    usual = Program(DATABASE_URL=url)
    for program, queue in ((usual, "email"), (staging(url), "letters")):
        program.ok("migrate")
        program.ok("create", queue, "--ordered")
        program.ok("send", queue, '{"n": 1}', "--priority", "5", "--group", "a")
    with psycopg.connect(server_of_ones_own.url("postgres"), autocommit=True) as db:
        db.execute("create table public.notes (id int); alter table public.notes owner to staging_owner")
        # A stale name in the list of one, and a queue of the other.
        db.execute("insert into staging_data.queues (queue) values ('email')")
        objects = (
            "select array(select tgname from pg_trigger where tgrelid = 'pgmq.q_email'::regclass order by 1),"
            " array(select polname from pg_policy where polrelid = 'pgmq.q_email'::regclass order by 1),"
            " array(select indexrelid::text from pg_index where indrelid = 'pgmq.q_email'::regclass order by 1)"
        )
        before = db.execute(objects).fetchone()
        staging(url).ok("migrate", "--uninstall", "--yes")
        assert db.execute(objects).fetchone() == before
        assert db.execute("select count(*) from public.notes").fetchone() == (0,)
        assert db.execute("select rolname from pg_roles where rolname like 'staging%'").fetchall() == []
        assert db.execute("select count(*) from pgmq.q_letters").fetchone() == (1,)
    # What is left behind is a queue of pgmq, closed to all but its owner as before.
    assert [one["queue"] for one in usual("doctor", "--json").json["findings"]] == ["letters"]
    # The queue is nobody's now, so that the other one may have it.
    usual.ok("create", "letters")
    assert usual.ok("status", "--json").json["queues"][1]["waiting"] == 1


def test_every_way_to_install_brings_the_second_one(server_of_ones_own: Server, tmp_path: Path) -> None:
    url = server_of_ones_own.database()
    install_pgmq(url)
    script = staging(url).ok("migrate", "--print").out
    for _ in range(2):
        assert psql(server_of_ones_own, url, script).returncode == 0
    assert staging(url).ok("migrate", "--check").out.endswith("which is current\n")
    # Two environments in one folder of the Supabase CLI.
    folder = tmp_path / "supabase" / "migrations"
    folder.mkdir(parents=True)
    (tmp_path / "supabase" / "config.toml").write_text('project_id = "tests"\n')
    for name in ("queue_worker", "other"):
        written = Program(QUEUE_WORKER_SCHEMA=name).ok("migrate", "--supabase", str(folder)).out
        assert f"_{name}_0001_core.sql" in written
    push = ("db", "push", "--db-url", tcp(server_of_ones_own, "login"), "--yes")
    assert "other_0001" in supabase(tmp_path, *push)
    for name in ("queue_worker", "other"):
        Program(DATABASE_URL=url, QUEUE_WORKER_SCHEMA=name).ok("migrate", "--check")
        repeated = Program(QUEUE_WORKER_SCHEMA=name).ok("migrate", "--supabase", str(folder)).out
        assert repeated == "nothing to write: all files are there\n"


def test_no_statement_keeps_the_usual_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_name, "_name", "staging")
    files = [*sql_dir().glob("*.sql"), *(sql_dir() / "uninstall").glob("*.sql")]
    texts = [BOOTSTRAP, NAME_GUARD, *(path.read_text() for path in files)]
    left = {one for text in texts for one in re.findall(r"queue\\?_worker\w*", schema_name.renamed(text))}
    # Triggers, whose names are their table's own.
    assert left == {
        "queue_worker_wake", "queue_worker_priority", "queue_worker_ring", "queue_worker_ring_row",
        "queue_worker_ring_gone",
    }  # fmt: skip
    roles = r"queue_(?:owner|producer|reader|operator)\b"
    assert [one for text in texts for one in re.findall(roles, schema_name.renamed(text))] == []


def test_a_setting_that_cannot_be_a_name_does_not_send_to_the_usual_one(dsn: str, db: psycopg.Connection[Any]) -> None:
    db.execute("select queue_worker.create_queue('email')")
    script = """
import sys
import psycopg
from queue_worker import Queue
with psycopg.connect(sys.argv[1]) as connection:
    Queue("email").send({}, connection=connection)
"""
    environment = Program(QUEUE_WORKER_SCHEMA="Staging").environment()
    done = subprocess.run([sys.executable, "-c", script, dsn], env=environment, capture_output=True, text=True)
    assert "QUEUE_WORKER_SCHEMA must be" in done.stderr
    assert db.execute("select count(*) from pgmq.q_email").fetchone() == (0,)


def test_the_demo_has_a_database_of_its_own_whatever_is_set(tmp_path: Path) -> None:
    done = Program(QUEUE_WORKER_SCHEMA="staging").ok("demo", "--dir", str(tmp_path / "demo"))
    assert "exit code 0" in done.out + done.err
