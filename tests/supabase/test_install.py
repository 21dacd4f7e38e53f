"""Installing as people do on Supabase: as somebody who is no superuser, beside what the dashboard made, three ways."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest

from queue_worker import migrate_supabase
from queue_worker.migrate_files import sql_dir
from queue_worker.migrate_pgmq import bundled
from tests.blackbox.program import Program
from tests.pooler import pooler
from tests.supabase import dashboard
from tests.supabase.installing import JOBS, Server, archived, install_pgmq, owners, supabase, tcp, works
from tests.supabase.project import project

pytestmark = pytest.mark.full


@pytest.mark.parametrize("options", ["createrole createdb bypassrls", "nocreaterole"])
@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooler"])
def test_who_owns_the_database_needs_no_superuser_and_takes_over_the_queue_of_the_dashboard(
    server_of_ones_own: Server, options: str, pooled: bool
) -> None:
    url = server_of_ones_own.database(options=options)
    install_pgmq(url)
    with psycopg.connect(url, autocommit=True) as db:
        dashboard.create_queue(db, "email")
        db.execute("select pgmq.send('email', '{\"n\": 1}')")
    if pooled:
        with pooler(url, user="login") as front:
            program = Program(DATABASE_URL=front.url, QUEUE_WORKER_POOLER="yes")
            program.ok("migrate")
            works(program)
    else:
        program = Program(DATABASE_URL=url)
        program.ok("migrate")
        works(program)
    assert archived(server_of_ones_own.url("postgres")) == 2
    assert owners(url) == {"queue_owner" if "nocreaterole" not in options else "login"}
    assert Program(DATABASE_URL=url).ok("doctor", "--security").out.endswith("nothing is wrong\n")


@pytest.mark.parametrize("options", ["createrole createdb bypassrls", "nocreaterole"])
def test_whoever_migrates_may_run_what_the_doctor_prints(server_of_ones_own: Server, options: str) -> None:
    url = server_of_ones_own.database(options=options)
    program = Program(DATABASE_URL=url)
    program.ok("migrate")
    program.ok("create", "email")
    with psycopg.connect(url, autocommit=True) as db:
        for act in (
            "drop function queue_worker.sign_off", "alter function queue_worker.extend security definer",
            "grant select on pgmq.q_email to anon", "alter table pgmq.a_email disable row level security",
            "grant execute on function queue_worker.purge to authenticated",
        ):  # fmt: skip
            db.execute(act.encode())
        for option, count in ((["--security"], 4), ([], 1)):
            findings = program("doctor", "--json", *option).json["findings"]
            assert len(findings) == count
            for one in findings:
                db.execute(one["fix"].encode())
    assert program.ok("doctor", "--json").json["healthy"]
    assert program.ok("doctor", "--security", "--json").json["healthy"]


def test_a_queue_that_belongs_to_somebody_else_is_refused_with_the_line_that_gives_it(
    server_of_ones_own: Server,
) -> None:
    url = server_of_ones_own.database()
    install_pgmq(url)
    with psycopg.connect(server_of_ones_own.url("postgres"), autocommit=True) as db:
        dashboard.create_queue(db, "email")
        db.execute("select pgmq.send('email', '{\"n\": 1}')")
    program = Program(DATABASE_URL=url)
    program.ok("migrate")
    Path("jobs.py").write_text(JOBS)
    done = program("start", "--app", "jobs:app", "--burst", QUEUE_WORKER_LOG_LEVEL="ERROR")
    assert done.code == 78
    assert "belongs to postgres, and login cannot give it to queue_owner" in done.err
    # The line that is printed, for whoever may.
    last = "create_queue('email');"
    statements = done.err.split("superuser run: ")[1].partition(last)[0] + last
    with psycopg.connect(server_of_ones_own.url("postgres"), autocommit=True) as db:
        db.execute(statements.encode())
    works(program)
    assert archived(server_of_ones_own.url("postgres")) == 2


def test_the_files_for_the_supabase_cli_are_pushed_once_and_an_upgrade_goes_on(
    server_of_ones_own: Server, tmp_path: Path
) -> None:
    url = server_of_ones_own.database()
    push = ("db", "push", "--db-url", tcp(server_of_ones_own, "login"), "--yes")
    (tmp_path / "supabase" / "migrations").mkdir(parents=True)
    (tmp_path / "supabase" / "config.toml").write_text('project_id = "tests"\n')
    folder = tmp_path / "supabase" / "migrations"
    (folder / "20200101000000_app.sql").write_text("create table public.orders (id int primary key);\n")
    # An older version, as somebody installed it before.
    older = tmp_path / "older"
    older.mkdir()
    for path in sorted(sql_dir().glob("*.sql"))[:20]:
        shutil.copy(path, older)
    migrate_supabase.write(folder, bundled("pgmq.sql"), source=older)
    assert "queue_worker_0001" in supabase(tmp_path, *push)
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("select pgmq.create('email'), pgmq.send('email', '{\"n\": 1}')")
    program = Program(DATABASE_URL=url)
    assert "lacks" in program("migrate", "--check").err
    written = program.ok("migrate", "--supabase", str(folder)).out
    assert written.endswith("now run: supabase db push\n")
    assert "queue_worker_0021_roles.sql" in written
    assert "queue_worker_0021" in supabase(tmp_path, *push)
    assert program.ok("migrate", "--supabase", str(folder)).out == "nothing to write: all files are there\n"
    assert "up to date" in supabase(tmp_path, *push)
    program.ok("migrate", "--check")
    works(program)
    assert archived(server_of_ones_own.url("postgres")) == 2


def test_the_script_for_the_sql_editor_may_be_pasted_twice(server_of_ones_own: Server) -> None:
    url = server_of_ones_own.database()
    # Hosted projects offer the extension; this server does not, so it has pgmq from somewhere already.
    install_pgmq(url)
    script = Program().ok("migrate", "--print").out
    for _ in range(2):
        done = subprocess.run(
            [server_of_ones_own.bin_dir / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", url],
            input=script, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    program = Program(DATABASE_URL=url)
    program.ok("migrate", "--check")
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("select pgmq.create('email'), pgmq.send('email', '{\"n\": 1}')")
    works(program)


def test_uninstall_leaves_the_queues_and_migrate_brings_all_back(server_of_ones_own: Server) -> None:
    url = server_of_ones_own.database()
    program = Program(DATABASE_URL=url)
    program.ok("migrate")
    program.ok("create", "email")
    program.ok("create", "orders", "--ordered")
    for _ in range(3):
        program.ok("send", "email", '{"to": "ann@example.com"}')
    refused = program("migrate", "--uninstall")
    assert refused.code == 2
    assert "--yes" in refused.err
    done = program.ok("migrate", "--uninstall", "--yes")
    assert done.out == "the schema is gone; pgmq, its queues and their messages are as they were\n"
    with psycopg.connect(url, autocommit=True) as db:
        left = db.execute("select nspname from pg_namespace where nspname like 'queue_worker%'").fetchall()
        roles = db.execute("select rolname from pg_roles where rolname like 'queue\\_%'").fetchall()
        assert (left, roles) == ([], [])
        assert db.execute("select count(*) from pgmq.read('email', 0, 10)").fetchone() == (3,)
        assert db.execute("select pgmq.send('orders', '{}')").fetchone() == (1,)
        db.execute("select pgmq.archive('email', 1)")
    program.ok("migrate")
    works(program)
    assert archived(server_of_ones_own.url("postgres")) == 4


def test_whoever_uninstalls_owns_the_queues_afterwards(server_of_ones_own: Server) -> None:
    """Without a role of ours that owns them they are the login's, until then."""
    url = server_of_ones_own.database(options="nocreaterole")
    Program(DATABASE_URL=url).ok("migrate")
    Program(DATABASE_URL=url).ok("create", "email")
    assert owners(url) == {"login"}
    Program(DATABASE_URL=server_of_ones_own.url("postgres")).ok("migrate", "--uninstall", "--yes")
    assert owners(url) == {"postgres"}


def test_what_rest_cannot_install_is_one_line_that_names_the_ways(dsn: str) -> None:
    with project(dsn) as made:
        program = Program(SUPABASE_URL=made.url, SUPABASE_SERVICE_ROLE_KEY=made.service_key)
        for option in ([], ["--dry-run"], ["--uninstall", "--yes"]):
            done = program("migrate", *option)
            assert done.code == 78
            assert "`queue-worker migrate --print`" in done.line
            assert "`migrate --supabase DIR`" in done.line
        assert program.ok("migrate", "--check").out.endswith("which is current\n")


def test_a_schema_that_is_not_exposed_stops_the_start_with_the_place_to_do_it(dsn: str) -> None:
    with project(dsn, schemas="public") as made:
        program = Program(SUPABASE_URL=made.url, SUPABASE_SERVICE_ROLE_KEY=made.service_key)
        for command, code in (("start", 78), ("status", 1)):
            done = program(command, QUEUE_WORKER_LOG_LEVEL="ERROR")
            assert done.code == code
            assert "Project Settings > Data API > Exposed schemas (self-hosted: PGRST_DB_SCHEMAS" in done.err


@pytest.mark.parametrize("key", ["anon", "publishable"])
def test_a_key_for_browsers_is_refused_before_anything_is_asked(dsn: str, key: str) -> None:
    with project(dsn) as made:
        given = made.anon_key if key == "anon" else "sb_publishable_abcdefgh"
        before = made.gateway.requests
        done = Program(SUPABASE_URL=made.url, SUPABASE_SERVICE_ROLE_KEY=given)("start")
        assert done.code == 78
        assert f"SUPABASE_SERVICE_ROLE_KEY holds a key for browsers ({key})" in done.line
        assert given not in done.err
        assert made.gateway.requests == before
