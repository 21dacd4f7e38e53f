"""A server of one test as Supabase has it, and what its tests of installing share."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psycopg

from queue_worker import embedded
from queue_worker.migrate_pgmq import bundled
from tests.blackbox.program import Program
from tests.supabase.postgrest import prepare_roles

CLI = Path(__file__).resolve().parents[2] / ".make/npm/node_modules/.bin/supabase"

JOBS = """
from queue_worker import App, Job

app = App(builtins=False)

@app.processor("email")
def mail(job: Job[dict]) -> None: ...
"""


class Server:
    """A server of one test, with the roles of Supabase and none of ours; `login` owns the database `app`."""

    def __init__(self, root: Path) -> None:
        self._embedded = embedded.ensure(root, settings={"fsync": "off", "max_connections": "60"})
        self.bin_dir = self._embedded.bin_dir
        prepare_roles(self._embedded.url)
        self.admin = psycopg.connect(self._embedded.url, autocommit=True)

    def database(self, login: str = "login", options: str = "createrole createdb bypassrls") -> str:
        """Make a database whose owner is no superuser, and may what `options` say; returns the owner's URL."""
        self.admin.execute(f"create role {login} login nosuperuser {options}".encode())
        self.admin.execute(f"create database app owner {login}".encode())
        prepare_roles(self.url("postgres"))
        return self.url(login)

    def url(self, user: str, name: str = "app") -> str:
        return self._embedded.url.replace("postgres@/postgres?", f"{user}@/{name}?")

    def close(self) -> None:
        self.admin.close()
        self._embedded.close()


def install_pgmq(url: str) -> None:
    """As the dashboard does when somebody switches queues on."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(bundled("pgmq.sql").encode())


def owners(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "select distinct relowner::regrole::text from pg_class"
            " where relnamespace = 'pgmq'::regnamespace and relname in ('q_email', 'a_email')"
        ).fetchall()
    return {row[0] for row in rows}


def works(program: Program) -> None:
    """A worker handles what is in `email`: what is there already, and what is sent now."""
    Path("jobs.py").write_text(JOBS)
    # It makes its queues, or takes over those that are there.
    program.ok("start", "--app", "jobs:app", "--burst")
    program.ok("send", "email", '{"n": 2}')
    program.ok("start", "--app", "jobs:app", "--burst")
    states = [one for one in program.ok("status", "--json").json["queues"] if one["queue"] == "email"]
    assert [(one["waiting"], one["running"], one["dead"]) for one in states] == [(0, 0, 0)]


def archived(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("select count(*) from pgmq.a_email").fetchone()
    assert row is not None
    return int(row[0])


def supabase(folder: Path, *arguments: str) -> str:
    """Run the real Supabase CLI in `folder`, without its telemetry and its look for new versions."""
    environment = {
        **os.environ,
        "HOME": str(folder),
        "SUPABASE_TELEMETRY_DISABLED": "1",
        "DO_NOT_TRACK": "1",
        "CI": "1",
    }
    done = subprocess.run(
        [CLI, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def tcp(server: Server, login: str) -> str:
    """The CLI speaks TCP."""
    server.admin.execute(f"alter role {login} password 'of-the-tests'".encode())
    port = psycopg.conninfo.conninfo_to_dict(server.url(login))["port"]
    return f"postgresql://{login}:of-the-tests@127.0.0.1:{port}/app?sslmode=disable"
