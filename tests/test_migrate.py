"""The migration runner on a real Postgres: once each, all at once, nothing half done, clear refusals."""

from __future__ import annotations

import importlib.resources
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from queue_worker import embedded, migrate, migrate_files, migrate_session
from queue_worker._version import __version__
from queue_worker.errors import CallRefused, ConfigError, SchemaError, TransportUnavailable
from queue_worker.migrate import Status
from queue_worker.transport.postgres import PostgresTransport

HEAD = "-- min_worker: 0.1.0\n"
REPOSITORY = Path(migrate.__file__).parents[1]

RUNNER = """
import sys
from pathlib import Path
from queue_worker import migrate
print("ready", flush=True)
sys.stdin.readline()
print(len(migrate.up(sys.argv[1], directory=Path(sys.argv[2]))), flush=True)
"""

CONTROL = "default_version = '{version}'\nschema = pgmq\nrelocatable = false\nsuperuser = true\n"
OLD_PGMQ = """
create type pgmq.message_record as
    (msg_id bigint, read_ct int, enqueued_at timestamptz, vt timestamptz, message jsonb);
"""


class Lab:
    """A Postgres of this module's own: roles belong to the whole server, and these tests make `anon` and others."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.embedded = embedded.ensure(directory / ".queue-worker", settings={"fsync": "off"})
        self._count = 0

    def database(self, owner: str = "postgres") -> str:
        """The URL of a new empty database, for its owner."""
        self._count += 1
        name = f"db_{self._count}"
        with psycopg.connect(self.embedded.url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("create database {} owner {}").format(sql.Identifier(name), sql.Identifier(owner))
            )
        return self.url(name, owner)

    def url(self, name: str, user: str) -> str:
        return self.embedded.url.replace("postgres@/postgres?", f"{user}@/{name}?")

    def role(self, name: str) -> str:
        with psycopg.connect(self.embedded.url, autocommit=True) as connection:
            if not connection.execute("select 1 from pg_roles where rolname = %s", [name]).fetchone():
                connection.execute(sql.SQL("create role {} login").format(sql.Identifier(name)))
        return name

    def offer(self, url: str, *versions: str) -> None:
        """Let the database find a real extension pgmq; the last version is the default one."""
        place = self.directory / "-".join(versions) / "extension"
        if not place.exists():
            place.mkdir(parents=True)
            (place / "pgmq.control").write_text(CONTROL.format(version=versions[-1]))
            for version in versions:
                text = OLD_PGMQ if version == "1.4.4" else bundled_pgmq()
                (place / f"pgmq--{version}.sql").write_text(text)
        self.set(url, "extension_control_path", f"{place.parent}:$system")

    def set(self, url: str, setting: str, value: str) -> None:
        """Give a setting to all future sessions of a database."""
        name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        with psycopg.connect(self.embedded.url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("alter database {} set {} = {}").format(
                    sql.Identifier(str(name)), sql.Identifier(setting), sql.Literal(value)
                )
            )

    def psql(self, url: str, script: str) -> subprocess.CompletedProcess[str]:
        program = self.embedded.bin_dir / "psql"
        return subprocess.run(
            [program, "-X", "-q", "-v", "ON_ERROR_STOP=1", url], input=script, capture_output=True, text=True
        )

    def dump(self, url: str) -> str:
        program = self.embedded.bin_dir / "pg_dump"
        text = subprocess.check_output([program, "--schema-only", url], text=True)
        return re.sub(r"^\\(un)?restrict .*$", "", text, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    # Not tmp_path: pytest keeps that under a directory which user nobody cannot enter.
    directory = Path(tempfile.mkdtemp(prefix="qw-test-")).resolve()
    directory.chmod(0o755)
    made = Lab(directory)
    yield made
    embedded.stop(directory / ".queue-worker", delete=True)
    shutil.rmtree(directory)


@pytest.fixture
def url(lab: Lab) -> str:
    return lab.database()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Three small migrations."""
    write(tmp_path, 1, "create table public.one (n int);\ninsert into public.one values (1);")
    write(tmp_path, 2, "alter table public.one add column m int default 2;")
    write(tmp_path, 3, "insert into public.one (n) values (3);")
    return tmp_path


def write(directory: Path, version: int, text: str, head: str = HEAD) -> Path:
    path = directory / f"{version:04d}_step.sql"
    path.write_text(f"{head}{text}\n")
    return path


def bundled_pgmq() -> str:
    return importlib.resources.files("pgmq").joinpath("sql", "pgmq.sql").read_text()


def rows(url: str, query: str, *params: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query.encode(), params or None)
        return cursor.fetchall() if cursor.description else []


def versions(url: str) -> list[int]:
    return [row[0] for row in rows(url, "select version from queue_worker_data.migrations order by version")]


# ------------------------------------------------------------------------------------------------ applying


def test_files_are_applied_in_order_and_once(url: str, files: Path) -> None:
    lines: list[str] = []
    applied = migrate.up(url, directory=files, report=lines.append)
    assert [(one.version, one.name) for one in applied] == [(1, "step"), (2, "step"), (3, "step")]
    assert rows(url, "select n, m from public.one order by n") == [(1, 2), (3, 2)]
    assert [line.split()[1] for line in lines if line.startswith("applied")] == [
        "0001_step.sql",
        "0002_step.sql",
        "0003_step.sql",
    ]
    assert migrate.up(url, directory=files) == []
    assert rows(url, "select count(*) from public.one") == [(2,)]
    assert migrate.check(url, directory=files) == Status(3, (), (), "0.1.0")


def test_a_second_run_writes_nothing(url: str, files: Path) -> None:
    migrate.up(url, directory=files)
    written = """
        select 'row', version::text, xmin::text from queue_worker_data.migrations
        union all select 'relation', relname, xmin::text from pg_class
        union all select 'function', proname, xmin::text from pg_proc
        union all select 'schema', nspname, xmin::text from pg_namespace
        order by 1, 2, 3
    """
    before = rows(url, written)
    migrate.up(url, directory=files)
    migrate.check(url, directory=files)
    migrate.dry_run(url, directory=files)
    assert rows(url, written) == before


def test_eight_runners_at_once_all_succeed_and_apply_each_file_once(url: str, files: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", RUNNER, url, str(files)]
    runners = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(8)
    ]
    for runner in runners:
        assert runner.stdout is not None
        assert runner.stdout.readline() == "ready\n"
    for runner in runners:
        assert runner.stdin is not None
        runner.stdin.write("go\n")
        runner.stdin.flush()
    answers = [runner.communicate(timeout=60) for runner in runners]
    assert [runner.returncode for runner in runners] == [0] * 8, answers
    assert sum(int(out) for out, _ in answers) == 3
    assert rows(url, "select count(*) from public.one") == [(2,)]
    assert versions(url) == [1, 2, 3]


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
def test_the_isolation_level_of_the_database_does_not_hide_what_others_applied(
    lab: Lab, url: str, files: Path, level: str
) -> None:
    lab.set(url, "default_transaction_isolation", level)
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(len(migrate.up(url, directory=files)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 3
    assert len(counts) == 4
    assert rows(url, "select count(*) from public.one") == [(2,)]


def test_a_failing_file_leaves_nothing_of_itself_and_the_next_run_goes_on(url: str, files: Path) -> None:
    broken = write(files, 2, "create table public.two (n int);\n\nselect nonsense from public.one;")
    with pytest.raises(CallRefused, match=r"^0002_step.sql, line 4: column \"nonsense\" does not exist$") as refusal:
        migrate.up(url, directory=files)
    assert refusal.value.sqlstate == "42703"
    assert versions(url) == [1]
    assert rows(url, "select to_regclass('public.two')") == [(None,)]
    broken.write_text(f"{HEAD}create table public.two (n int);")
    assert [one.version for one in migrate.up(url, directory=files)] == [2, 3]


def test_a_connection_lost_in_the_middle_of_a_file_leaves_nothing_of_it(url: str, files: Path) -> None:
    write(files, 2, "create table public.two (n int);\nselect pg_terminate_backend(pg_backend_pid());")
    with pytest.raises(TransportUnavailable, match=r"^the database cannot be reached: [^\n]+$"):
        migrate.up(url, directory=files)
    assert versions(url) == [1]
    assert rows(url, "select to_regclass('public.two')") == [(None,)]


def test_files_run_with_an_empty_search_path_and_their_own_time_limits(url: str, tmp_path: Path) -> None:
    settings = ["search_path", "statement_timeout", "lock_timeout", "transaction_isolation"]
    seen = ", ".join(f"current_setting('{setting}') as {setting}" for setting in settings)
    write(tmp_path, 1, f"create table public.seen as select {seen};")
    migrate.up(url, directory=tmp_path)
    assert rows(url, "select * from public.seen") == [("", "0", "5s", "read committed")]


def test_non_ascii_text_arrives_whatever_the_client_encoding(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    write(tmp_path, 1, "create table public.words as select 'Привет, 世界 한국' as word;")
    migrate.up(url, directory=tmp_path)
    monkeypatch.undo()
    assert rows(url, "select word from public.words") == [("Привет, 世界 한국",)]


def test_migrating_with_messages_in_flight_loses_none(url: str, tmp_path: Path) -> None:
    write(tmp_path, 1, "select pgmq.create('busy');")
    migrate.up(url, directory=tmp_path)
    stop = threading.Event()
    sent: list[int] = []
    done: list[int] = []

    def work() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not stop.is_set() or len(done) < len(sent):
                if not stop.is_set():
                    row = connection.execute("select * from pgmq.send('busy', '{}')").fetchone()
                    sent.append(row[0] if row else 0)
                for (one,) in connection.execute("select msg_id from pgmq.read('busy', 30, 10)").fetchall():
                    connection.execute("select pgmq.archive('busy', %s::bigint)", [one])
                    done.append(one)

    worker = threading.Thread(target=work)
    worker.start()
    write(tmp_path, 2, "alter table pgmq.q_busy add column note text;")
    write(tmp_path, 3, "create index q_busy_note_idx on pgmq.q_busy (note);\nalter table pgmq.q_busy drop column note;")
    migrate.up(url, directory=tmp_path)
    stop.set()
    worker.join()
    assert versions(url) == [1, 2, 3]
    assert sorted(done) == sorted(sent)
    assert len(set(done)) == len(done)
    assert rows(url, "select count(*) from pgmq.q_busy") == [(0,)]


def test_a_lock_in_the_way_is_waited_for_with_a_clear_line(url: str, files: Path) -> None:
    write(files, 4, "alter table public.one add column late int;")
    later = files / "0004_step.sql"
    later.rename(files / "later")
    migrate.up(url, directory=files)
    (files / "later").rename(later)
    lines: list[str] = []
    with psycopg.connect(url) as holder:
        holder.execute("lock table public.one in access share mode")

        def report(line: str) -> None:
            lines.append(line)
            holder.rollback()

        applied = migrate.up(url, directory=files, report=report, lock_timeout=0.05)
    assert [one.version for one in applied] == [4]
    assert lines[0].startswith("0004_step.sql waits for a lock of another transaction: attempt 1 of 5 failed")


def test_a_lock_that_stays_is_given_up_with_nothing_applied(
    url: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate_session, "_ATTEMPTS", 2)
    migrate.up(url, directory=files)
    write(files, 4, "create table public.four (n int);\nalter table public.one add column late int;")
    with psycopg.connect(url) as holder:
        holder.execute("lock table public.one in access share mode")
        with pytest.raises(CallRefused, match=r"^0004_step.sql: gave up after 2 attempts, .* run `queue-worker") as no:
            migrate.up(url, directory=files, lock_timeout=0.05)
    assert no.value.sqlstate == "55P03"
    assert versions(url) == [1, 2, 3]
    assert rows(url, "select to_regclass('public.four')") == [(None,)]


# ------------------------------------------------------------------------------------------------ refusals


def test_a_file_changed_after_it_was_applied_is_named(url: str, files: Path) -> None:
    migrate.up(url, directory=files)
    write(files, 2, "alter table public.one add column other int;")
    write(files, 4, "create table public.four (n int);")
    line = r"^0002_step.sql was changed after it was applied: restore it"
    for act in (migrate.up, migrate.dry_run):
        with pytest.raises(SchemaError, match=line):
            act(url, directory=files)
    status = migrate.check(url, directory=files)
    assert status == Status(3, ("0004_step.sql",), ("0002_step.sql",), "0.1.0")
    with pytest.raises(SchemaError, match=line):
        migrate.require(status)
    assert versions(url) == [1, 2, 3]


def test_line_ends_and_a_byte_order_mark_do_not_count_as_a_change(url: str, files: Path) -> None:
    migrate.up(url, directory=files)
    for path in files.glob("*.sql"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert migrate.check(url, directory=files) == Status(3, (), (), "0.1.0")


def test_a_file_below_the_applied_version_is_refused(url: str, files: Path) -> None:
    late = files / "0002_step.sql"
    late.rename(files / "late")
    migrate.up(url, directory=files)
    (files / "late").rename(late)
    with pytest.raises(SchemaError, match=r"^0002_step.sql was never applied, but version 3 was"):
        migrate.up(url, directory=files)
    assert versions(url) == [1, 3]


@pytest.mark.parametrize(("minimum", "fits"), [("0.0.1", True), (__version__, True), ("99.0.0", False)])
def test_a_newer_schema_is_fine_unless_it_needs_a_newer_worker(url: str, files: Path, minimum: str, fits: bool) -> None:
    migrate.up(url, directory=files)
    rows(url, "insert into queue_worker_data.migrations values (9, 'future', 'x', %s)", minimum)
    status = migrate.check(url, directory=files)
    assert status == Status(9, (), (), minimum)
    if fits:
        assert migrate.up(url, directory=files) == []
        migrate.require(status)
        return
    line = f"^worker {re.escape(__version__)} is older than the schema's minimum 99.0.0: install a newer queue-worker$"
    for act in (migrate.up, migrate.dry_run):
        with pytest.raises(SchemaError, match=line):
            act(url, directory=files)
    with pytest.raises(SchemaError, match=line):
        migrate.require(status)


@pytest.mark.parametrize(
    ("status", "worker", "line"),
    [
        (Status(5, (), (), "0.1.0"), "0.1.0", None),
        (Status(5, (), (), "0.9.0"), "0.10.0", None),
        (Status(5, (), (), "0.1.0"), "0.1.0rc1", None),
        (Status(5, (), (), "0.10.0"), "0.9.9", "older than the schema's minimum 0.10.0"),
        (Status(0, ("0001_core.sql",), (), None), "0.1.0", "run `queue-worker migrate`"),
        (Status(1, ("0002_x.sql",), (), "0.1.0"), "0.1.0", "at version 1 and lacks 0002_x.sql: run `queue-worker mi"),
    ],
)
def test_which_worker_runs_on_which_schema(status: Status, worker: str, line: str | None) -> None:
    if line is None:
        migrate.require(status, worker)
        return
    with pytest.raises(SchemaError, match=re.escape(line)) as refusal:
        migrate.require(status, worker)
    assert refusal.value.exit_code == 78
    assert "\n" not in str(refusal.value)


def test_an_empty_database_is_told_from_a_migrated_one_without_touching_it(url: str, files: Path) -> None:
    pending = ("0001_step.sql", "0002_step.sql", "0003_step.sql")
    assert migrate.check(url, directory=files) == Status(0, pending, (), None)
    plan = migrate.dry_run(url, directory=files)
    assert plan[0] == "install pgmq 1.13.0 from the SQL of the Python package pgmq"
    assert plan[1:] == ["create the schemas queue_worker and queue_worker_data", *(f"apply {one}" for one in pending)]
    assert rows(url, "select nspname from pg_namespace where nspname ~ 'queue|pgmq'") == []


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("0002-step.sql", b"-- min_worker: 0.1.0\n", "0002-step.sql is not named like a migration"),
        ("0002_step.sql", b"-- A comment.\nselect 1;\n", "0002_step.sql does not begin with the line `-- min_worker"),
        ("0002_step.sql", b"select 1;\n-- min_worker: 0.1.0\n", "0002_step.sql does not begin with the line"),
        ("0002_step.sql", b"-- min_worker: 0.1\n", "0002_step.sql does not begin with the line"),
        ("0002_step.sql", b"", "0002_step.sql does not begin with the line"),
        ("0001_twin.sql", b"-- min_worker: 0.1.0\n", "0001_step.sql and 0001_twin.sql have the same number"),
        ("0002_step.sql", b"-- min_worker: 0.1.0\n-- \xff\n", "0002_step.sql is not encoded in UTF-8"),
    ],
)
def test_a_wrong_file_is_named_before_anything_is_applied(tmp_path: Path, name: str, content: bytes, line: str) -> None:
    write(tmp_path, 1, "select 1;")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SchemaError, match=f"^{re.escape(line)}"):
        migrate.up("postgresql://nowhere.invalid/none", directory=tmp_path)


def test_an_empty_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="holds no migration files"):
        migrate.print_sql(directory=tmp_path)


# --------------------------------------------------------------------------------------- roles and connections


def test_the_owner_of_the_database_needs_no_superuser(lab: Lab, files: Path) -> None:
    url = lab.database(lab.role("landlord"))
    assert len(migrate.up(url, directory=files)) == 3
    assert rows(url, "select * from queue_worker.schema_version()") == [(3, "0.1.0")]


def test_a_role_that_may_not_migrate_gets_one_line(lab: Lab, url: str, files: Path) -> None:
    guest = url.replace("postgres@", f"{lab.role('guest')}@")
    with pytest.raises(SchemaError, match=r"^the preparation: permission denied for database \w+; use the role that"):
        migrate.up(guest, directory=files)
    migrate.up(url, directory=files)
    with pytest.raises(SchemaError, match=r"^the schema: permission denied for schema queue_worker_data; use the role"):
        migrate.check(guest, directory=files)


def test_nobody_else_may_call_the_version_function_or_read_the_table(lab: Lab, url: str, files: Path) -> None:
    lab.role("anon")
    rows(
        url,
        "alter default privileges grant all on functions to anon; alter default privileges grant all on tables to anon",
    )
    migrate.up(url, directory=files)
    for role in (lab.role("guest"), "anon"):
        assert rows(
            url,
            "select has_function_privilege(%s, 'queue_worker.schema_version()', 'execute'),"
            " has_table_privilege(%s, 'queue_worker_data.migrations', 'select')",
            role,
            role,
        ) == [(False, False)]


def test_a_database_that_does_not_answer_is_one_line(files: Path) -> None:
    with pytest.raises(TransportUnavailable, match=r"^the database cannot be reached: [^\n]*refused[^\n]*$"):
        migrate.up("postgresql://worker:hunter2@127.0.0.1:1/none", directory=files)


@pytest.mark.parametrize(
    "conninfo",
    [
        "postgresql://worker:hunter2%zz@127.0.0.1:1/none",
        "postgresql://worker:hunter2@hunter2@127.0.0.1:1/none",
        "postgresql://worker:hunter2/hunter2@127.0.0.1:1/none",
        "postgresql://worker:hunter2?hunter2@127.0.0.1:1/none",
        "hunter2 with words",
        "postgresql://worker:hunter2@hunter2.invalid:1/none",
    ],
)
def test_no_part_of_a_password_reaches_an_error(files: Path, conninfo: str) -> None:
    for act in (migrate.up, migrate.check, migrate.dry_run):
        with pytest.raises((ConfigError, TransportUnavailable)) as refusal:
            act(conninfo, directory=files)
        assert "hunter2" not in str(refusal.value)
        assert "\n" not in str(refusal.value)
        assert refusal.value.__context__ is None or refusal.value.__suppress_context__


def test_a_wrong_password_is_told_without_it(lab: Lab, files: Path) -> None:
    right = lab.embedded.tcp_url
    wrong = re.sub(r":[^:@/]+@", ":hunter2@", right)
    assert wrong != right
    with pytest.raises(TransportUnavailable, match="password authentication failed") as refusal:
        migrate.check(wrong, directory=files)
    assert "hunter2" not in str(refusal.value)


# ------------------------------------------------------------------------------------------------------- pgmq


def test_pgmq_comes_as_an_extension_where_the_server_has_it(lab: Lab, url: str, files: Path) -> None:
    lab.offer(url, "1.13.0")
    assert migrate.dry_run(url, directory=files)[0] == "create extension pgmq (version 1.13.0)"
    migrate.up(url, directory=files)
    assert rows(url, "select extversion from pg_extension where extname = 'pgmq'") == [("1.13.0",)]
    assert migrate.up(url, directory=files) == []


def test_pgmq_comes_from_the_package_where_the_server_has_none(url: str, files: Path) -> None:
    lines: list[str] = []
    migrate.up(url, directory=files, report=lines.append)
    assert lines[0] == "install pgmq 1.13.0 from the SQL of the Python package pgmq"
    assert rows(url, "select pgmq.create('q'), pgmq.send('q', '{}') from pg_extension where extname = 'plpgsql'")


def test_a_pgmq_that_is_there_already_stays_as_it_is(url: str, files: Path) -> None:
    rows(url, bundled_pgmq())
    rows(url, "select pgmq.create('kept')")
    rows(url, "select pgmq.send('kept', '{}')")
    lines: list[str] = []
    migrate.up(url, directory=files, report=lines.append)
    assert not [line for line in lines if "pgmq" in line]
    assert rows(url, "select count(*) from pgmq.q_kept") == [(1,)]


def test_an_old_extension_is_refused_with_the_statement_that_updates_it(lab: Lab, url: str, files: Path) -> None:
    lab.offer(url, "1.4.4", "1.13.0")
    rows(url, "create extension pgmq version '1.4.4'")
    for act in (migrate.up, migrate.dry_run):
        with pytest.raises(SchemaError, match=r"^pgmq 1.4.4 is too old, .*run `alter extension pgmq update;`"):
            act(url, directory=files)


def test_a_server_that_offers_an_old_extension_only_is_left_without_it(lab: Lab, url: str, files: Path) -> None:
    lab.offer(url, "1.4.4")
    with pytest.raises(SchemaError, match=r"^pgmq 1.4.4 is too old, .* the server offers no newer one"):
        migrate.up(url, directory=files)
    assert rows(url, "select 1 from pg_extension where extname = 'pgmq'") == []


def test_an_old_pgmq_from_plain_sql_is_refused(url: str, files: Path) -> None:
    rows(url, f"create schema pgmq; {OLD_PGMQ}")
    with pytest.raises(SchemaError, match=r"installed from plain SQL older than 1\.5"):
        migrate.up(url, directory=files)


def test_who_may_not_create_the_extension_gets_the_line_for_the_administrator(lab: Lab, files: Path) -> None:
    url = lab.database(lab.role("landlord"))
    lab.offer(url, "1.13.0")
    with pytest.raises(SchemaError, match=r'"landlord" may not .*database "db_\d+": create extension pgmq;$') as no:
        migrate.up(url, directory=files)
    assert no.value.exit_code == 78
    assert rows(url, "select 1 from pg_namespace where nspname ~ 'queue_worker'") == []


# ---------------------------------------------------------------------------------------------------- printing


def test_the_printed_script_does_what_the_runner_does_and_may_be_pasted_twice(lab: Lab, url: str, files: Path) -> None:
    lab.offer(url, "1.13.0")
    script = migrate.print_sql(directory=files)
    for _ in range(2):
        done = lab.psql(url, script)
        assert (done.returncode, done.stderr) == (0, "")
        assert "0.1.0" in done.stdout
    assert migrate.check(url, directory=files) == Status(3, (), (), "0.1.0")
    assert migrate.up(url, directory=files) == []
    assert rows(url, "select count(*) from public.one") == [(2,)]


def test_the_printed_script_runs_as_one_query_and_goes_on_from_where_a_database_is(
    lab: Lab, url: str, files: Path
) -> None:
    lab.offer(url, "1.13.0")
    (files / "0003_step.sql").rename(files / "later")
    migrate.up(url, directory=files)
    (files / "later").rename(files / "0003_step.sql")
    rows(url, migrate.print_sql(directory=files))
    assert versions(url) == [1, 2, 3]
    assert migrate.check(url, directory=files) == Status(3, (), (), "0.1.0")


def test_the_printed_script_applies_all_or_nothing(lab: Lab, url: str, files: Path) -> None:
    lab.offer(url, "1.13.0")
    write(files, 3, "select 1/0;")
    done = lab.psql(url, migrate.print_sql(directory=files))
    assert done.returncode != 0
    assert rows(url, "select 1 from pg_namespace where nspname ~ 'queue_worker|pgmq'") == []


def test_the_printed_script_refuses_a_changed_file(lab: Lab, url: str, files: Path) -> None:
    lab.offer(url, "1.13.0")
    migrate.up(url, directory=files)
    write(files, 1, "create table public.other (n int);")
    assert "0001_step.sql was changed after it was applied" in lab.psql(url, migrate.print_sql(directory=files)).stderr


def test_dollar_quotes_in_a_file_survive_printing(lab: Lab, url: str, tmp_path: Path) -> None:
    lab.offer(url, "1.13.0")
    inner = "$qw_body_1$ $qw_body_2$ $qw_migration_1$ $$ $1 it's {braces} %s \\\\"
    write(
        tmp_path,
        1,
        f"create table public.kept as select $x${inner}$x$::text as word;\n"
        "do $$ begin perform 1; end $$;\n"
        "create function public.f() returns int language plpgsql as $$ begin return 7; end $$;\n"
        "-- the end, without a semicolon or a line end $",
    )
    done = lab.psql(url, migrate.print_sql(directory=tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(url, "select word, public.f() from public.kept") == [(inner, 7)]


@pytest.mark.parametrize(("offered", "hint"), [((), "queue-worker migrate"), (("1.4.4",), "alter extension pgmq up")])
def test_the_printed_script_explains_what_is_missing_of_pgmq(
    lab: Lab, url: str, files: Path, offered: tuple[str, ...], hint: str
) -> None:
    if offered:
        lab.offer(url, *offered)
    done = lab.psql(url, migrate.print_sql(directory=files))
    assert done.returncode != 0
    assert hint in done.stderr
    assert rows(url, "select 1 from pg_namespace where nspname ~ 'queue_worker|pgmq'") == []


# ------------------------------------------------------------------------------------------- the project's files


def test_the_projects_files_apply_and_both_ways_of_asking_agree(url: str) -> None:
    applied = migrate.up(url)
    status = migrate.check(url)
    assert status == Status(applied[-1].version, (), (), status.min_worker)
    migrate.require(status)
    transport = PostgresTransport(lambda: url)
    assert migrate.check_through(transport.call) == status
    transport.close()
    assert migrate.up(url) == []


def test_asking_through_a_transport_tells_a_missing_schema_from_an_old_one(url: str, files: Path) -> None:
    transport = PostgresTransport(lambda: url)
    assert migrate.check_through(transport.call, directory=files).current == 0
    (files / "0003_step.sql").rename(files / "later")
    migrate.up(url, directory=files)
    (files / "later").rename(files / "0003_step.sql")
    status = migrate.check_through(transport.call, directory=files)
    transport.close()
    assert status == Status(2, ("0003_step.sql",), (), "0.1.0")
    with pytest.raises(SchemaError, match=r"lacks 0003_step.sql"):
        migrate.require(status)


def test_a_refusal_of_another_kind_is_passed_on(lab: Lab, url: str, files: Path) -> None:
    migrate.up(url, directory=files)
    guest = url.replace("postgres@", f"{lab.role('guest')}@")
    transport = PostgresTransport(lambda: guest)
    with pytest.raises(CallRefused) as refusal:
        migrate.check_through(transport.call, directory=files)
    transport.close()
    assert refusal.value.sqlstate == "42501"


def test_the_schema_is_the_same_whichever_way_it_came_about(lab: Lab, tmp_path: Path) -> None:
    urls = [lab.database() for _ in range(3)]
    for url in urls:
        lab.offer(url, "1.13.0")
    at_once, printed, step_by_step = urls
    migrate.up(at_once)
    done = lab.psql(printed, migrate.print_sql())
    assert (done.returncode, done.stderr) == (0, "")
    for file in sorted(migrate.sql_dir().glob("*.sql")):
        shutil.copy(file, tmp_path)
        assert len(migrate.up(step_by_step, directory=tmp_path)) == 1
    assert lab.dump(at_once) == lab.dump(printed) == lab.dump(step_by_step)
    assert migrate.check(printed) == migrate.check(at_once)


def test_the_projects_files_have_no_transaction_commands_of_their_own() -> None:
    for migration in migrate_files.read_migrations(migrate.sql_dir()):
        assert not re.search(r"^\s*(begin|commit|rollback|start transaction)\b[^;\n]*;", migration.text, re.M | re.I)
