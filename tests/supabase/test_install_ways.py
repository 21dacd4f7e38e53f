"""Installing over what is there already: an older version, somebody else's queue, the functions of the dashboard."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker import migrate
from queue_worker.migrate_files import sql_dir
from tests.blackbox.program import Program
from tests.helpers import wait_until
from tests.pooler import pooler
from tests.supabase import dashboard
from tests.supabase.installing import JOBS, Server, archived, install_pgmq, works
from tests.supabase.project import project

pytestmark = pytest.mark.full


def paste(url: str, script: str) -> None:
    """As an SQL editor does it: the whole text is one query."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(script.encode())


@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooler"])
def test_a_superuser_migrates_and_takes_over_the_queue_of_somebody_else(
    server_of_ones_own: Server, pooled: bool
) -> None:
    url = server_of_ones_own.database()
    install_pgmq(url)
    with psycopg.connect(url, autocommit=True) as db:
        dashboard.create_queue(db, "email")
        db.execute("select pgmq.send('email', '{\"n\": 1}')")
    admin = server_of_ones_own.url("postgres")
    if pooled:
        with pooler(admin) as front:
            program = Program(DATABASE_URL=front.url, QUEUE_WORKER_POOLER="yes")
            program.ok("migrate")
            works(program)
    else:
        program = Program(DATABASE_URL=admin)
        program.ok("migrate")
        works(program)
    assert archived(admin) == 2


def test_the_script_pasted_over_an_older_version_goes_on_from_there(server_of_ones_own: Server, tmp_path: Path) -> None:
    url = server_of_ones_own.database()
    install_pgmq(url)
    older = tmp_path / "older"
    older.mkdir()
    for path in sorted(sql_dir().glob("*.sql"))[:20]:
        shutil.copy(path, older)
    paste(url, migrate.print_sql(directory=older))
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("select queue_worker.create_queue('email'), queue_worker.send('email', '{\"n\": 1}')")
    program = Program(DATABASE_URL=url)
    assert program("migrate", "--check").code == 78
    script = program.ok("migrate", "--print").out
    paste(url, script)
    paste(url, script)
    assert program.ok("migrate", "--check").out.endswith("which is current\n")
    works(program)
    assert archived(server_of_ones_own.url("postgres")) == 2
    assert program.ok("doctor", "--security").out.endswith("nothing is wrong\n")


def test_a_queue_of_the_dashboard_with_its_functions_goes_on_for_the_service_key_alone(
    server_of_ones_own: Server,
) -> None:
    url = server_of_ones_own.database()
    install_pgmq(url)
    server_of_ones_own.admin.execute("grant service_role, anon to login")
    with psycopg.connect(url, autocommit=True) as db:
        dashboard.expose_queues(db)
        dashboard.create_queue(db, "email")
        db.execute("set role service_role; select pgmq_public.send('email', '{\"n\": 1}'); reset role")
    program = Program(DATABASE_URL=url)
    program.ok("migrate")
    works(program)
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("set role service_role")
        db.execute("select pgmq_public.send('email', '{\"n\": 3}')")
        db.execute("set role anon")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute("select pgmq_public.send('email', '{\"n\": 4}')")
    program.ok("start", "--app", "jobs:app", "--burst")
    assert archived(server_of_ones_own.url("postgres")) == 3


@pytest.mark.parametrize("transport", ["direct", "rest"])
def test_a_worker_whose_queue_is_made_anew_by_somebody_else_says_so_and_goes_on_when_it_is_given(
    server_of_ones_own: Server, transport: str
) -> None:
    url, admin = server_of_ones_own.database(), server_of_ones_own.url("postgres")
    install_pgmq(url)
    program = Program(DATABASE_URL=url)
    program.ok("migrate")
    Path("jobs.py").write_text(JOBS.replace('"email"', '"email", cycle=0.2'))
    with project(admin) as made, psycopg.connect(admin, autocommit=True) as db:
        if transport == "rest":
            program = Program(SUPABASE_URL=made.url, SUPABASE_SERVICE_ROLE_KEY=made.service_key)
        with program.running("--app", "jobs:app") as worker:
            worker.ready()
            db.execute("select pgmq.drop_queue('email')")
            dashboard.create_queue(db, "email")
            db.execute("select pgmq.send('email', '{\"n\": 1}')")
            wait_until(lambda: "its tables do not belong to queue_owner" in worker.log, 20, lambda: worker.log)
            assert "select queue_worker.create_queue('email');" in worker.log
            db.execute("select queue_worker.create_queue('email')")
            wait_until(lambda: archived(admin) == 1, 20, lambda: worker.log)


def test_uninstall_says_what_goes_and_waits_for_nobody(server_of_ones_own: Server) -> None:
    url = server_of_ones_own.database()
    program = Program(DATABASE_URL=url)
    assert program("migrate", "--uninstall", "--yes").line == "there is no schema queue_worker in this database"
    program.ok("migrate")
    Path("jobs.py").write_text(JOBS)
    done = program("migrate", "--uninstall")
    assert done.code == 2
    for line in ("This takes the schema queue_worker away.", "0 dead letters", "0 schedules", "0 payments", "0 mails"):
        assert line in done.err
    state: Any = None
    with program.running("--app", "jobs:app") as worker, psycopg.connect(url, autocommit=True) as db:
        worker.ready()
        wait_until(lambda: db.execute("select 1 from queue_worker.workers").fetchone(), 20)
        done = program("migrate", "--uninstall", "--yes")
        state = db.execute("select to_regnamespace('queue_worker') is not null").fetchone()
    assert done.code == 78
    assert done.err.endswith("1 workers are running: stop them first\n")
    assert state == (True,)
