"""Applying the migrations of schema `queue_worker`, and telling whether a schema and a worker fit together.

Each file is applied in one transaction that takes an advisory lock first and reads the applied version again, so
any number of runners may start at once. Nothing here depends on session state: transaction poolers are fine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg.rows import class_row

from queue_worker import migrate_pgmq
from queue_worker._version import __version__
from queue_worker.errors import CallRefused, SchemaError
from queue_worker.migrate_files import BOOTSTRAP, Migration, parse_version, read_migrations, script, sql_dir
from queue_worker.migrate_session import LOCK_TIMEOUT, Connection, session
from queue_worker.schema_name import USUAL, current, renamed
from queue_worker.transport import Rows

__all__ = ["Applied", "Status", "check", "check_through", "dry_run", "print_sql", "require", "sql_dir", "up"]

Call = Callable[[str, Mapping[str, Any]], Rows]

# Refusals that mean that there is no such function: PostgREST's own code, and those of Postgres.
_NO_FUNCTION = ("PGRST202", "42883", "3F000")


@dataclass(frozen=True, slots=True)
class Applied:
    """A migration that this run applied; `seconds` is how long that took."""

    version: int
    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Status:
    """How the schema of a database compares with the files of this worker.

    `current`: the newest applied version, 0 where there is no schema. `pending` and `changed`: names of files that
    are not applied, or differ from what was applied. `min_worker`: the lowest worker version that works on it.
    """

    current: int
    pending: tuple[str, ...]
    changed: tuple[str, ...]
    min_worker: str | None


_NOTE = "insert into queue_worker_data.migrations (version, name, checksum, min_worker) values (%s, %s, %s, %s)"
_APPLIED = "select version, checksum, min_worker from queue_worker_data.migrations"
_LOOK = """
select
    exists (
        select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where n.nspname = 'queue_worker_data' and c.relname = 'migrations'
    ) as has_table,
    exists (
        select from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where n.nspname = 'queue_worker' and p.proname = 'schema_version'
    ) as has_function
"""


@dataclass(frozen=True, slots=True)
class _Row:
    version: int
    checksum: str
    min_worker: str


@dataclass(frozen=True, slots=True)
class _Base:
    """Which parts of the bootstrap a database has."""

    has_table: bool
    has_function: bool


def up(
    conninfo: str,
    *,
    directory: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
    lock_timeout: float = LOCK_TIMEOUT,
) -> list[Applied]:
    """Bring pgmq and the schema into the database; return what this run applied, in order.

    `directory` holds the files (None: those of the package), `report` gets a line for each step and each wait, and
    `lock_timeout` is in seconds. Raises SchemaError (a file was changed after it was applied, the schema needs a
    newer worker, the role may not do it, pgmq is too old), TransportUnavailable, or CallRefused for an error of SQL;
    what was applied before stays, and the next run goes on from there.
    """
    migrations = read_migrations(directory or sql_dir())
    applied = []
    with session(conninfo, lock_timeout=lock_timeout, report=report) as runner:
        # Neither a lock nor a write where nothing is to be done: a role that may only read is enough for that.
        if not _plan(runner.connection, migrations):
            return []
        for line in runner.run("the preparation", _prepare):
            report(line)
        for migration in migrations:
            done = runner.run(migration.file, _application(migration, migrations), migration.text)
            if done is not None:
                report(f"applied {migration.file} in {done.seconds:.2f} s")
                applied.append(done)
    return applied


def check(conninfo: str, *, directory: Path | None = None) -> Status:
    """Compare the schema of the database with the files, without writing.

    Raises SchemaError where the role may not read it, TransportUnavailable where the database cannot be reached.
    """
    migrations = read_migrations(directory or sql_dir())
    with session(conninfo) as runner:
        return _compare(migrations, _applied(runner.connection))


def check_through(call: Call, *, directory: Path | None = None) -> Status:
    """Like `check`, by the `call` of a transport: over REST there are functions only.

    `changed` is always empty, because checksums are not visible this way. Raises what `call` raises, apart from the
    refusals that mean that there is no schema.
    """
    migrations = read_migrations(directory or sql_dir())
    try:
        rows = call("queue_worker.schema_version", {}).dicts()
    except CallRefused as refusal:
        if refusal.sqlstate not in _NO_FUNCTION:
            raise
        rows = []
    current = int(rows[0]["version"]) if rows else 0
    pending = tuple(migration.file for migration in migrations if migration.version > current)
    return Status(current, pending, (), str(rows[0]["min_worker"]) if rows else None)


def require(status: Status, worker_version: str = __version__) -> None:
    """Raise SchemaError unless a worker of `worker_version` may run on a schema of this `status`.

    A schema newer than the worker is fine as long as the worker is not below the schema's `min_worker`.
    """
    if status.min_worker is not None:
        _require_worker(status.min_worker, worker_version)
    if status.changed:
        raise SchemaError(_changed_line(status.changed[0]))
    if status.current == 0:
        raise SchemaError(renamed("the database has no schema queue_worker, or hides it: run `queue-worker migrate`"))
    if status.pending:
        raise SchemaError(
            f"the schema is at version {status.current} and lacks {', '.join(status.pending)}: "
            "run `queue-worker migrate`"
        )


def dry_run(conninfo: str, *, directory: Path | None = None) -> list[str]:
    """Say what `up` would do, a line for each step; empty where nothing is left to do.

    Raises SchemaError where `up` would refuse to begin, TransportUnavailable where the database cannot be reached.
    """
    migrations = read_migrations(directory or sql_dir())
    with session(conninfo) as runner:
        return _plan(runner.connection, migrations)


def print_sql(*, directory: Path | None = None) -> str:
    """Return one SQL script that does what `up` does, for an SQL editor; it may be run again at any time."""
    return renamed(script(read_migrations(directory or sql_dir())))


def _plan(connection: Connection, migrations: Sequence[Migration]) -> list[str]:
    pgmq = migrate_pgmq.look(connection)
    if pgmq.installed:
        pgmq.require()
    base = _base(connection)
    applied = _applied(connection)
    _verify(migrations, applied)
    steps = [pgmq.plan] if pgmq.plan else []
    if not (base.has_table and base.has_function):
        steps.append(renamed("create the schemas queue_worker and queue_worker_data"))
    return steps + [f"apply {one.file}" for one in migrations if one.version not in applied]


def _prepare(connection: Connection) -> list[str]:
    """Bring pgmq, the schemas and the table of migrations, where they are missing; return what was done."""
    done = [line] if (line := migrate_pgmq.install(connection)) else []
    base = _base(connection)
    if not (base.has_table and base.has_function):
        _refuse_login(connection)
        connection.execute(renamed(BOOTSTRAP).encode())
        done.append(renamed("create the schemas queue_worker and queue_worker_data"))
    return done


def _refuse_login(connection: Connection) -> None:
    """Raise SchemaError where the worker's role, which is called like the schema, is somebody's login already."""
    found = connection.execute("select from pg_catalog.pg_roles where rolname = %s and rolcanlogin", [current()])
    if current() != USUAL and found.fetchone() is not None:
        raise SchemaError(
            f"QUEUE_WORKER_SCHEMA={current()}: the worker's role is called like the schema, and a login has that name:"
            " choose another one"
        )


def _application(migration: Migration, migrations: Sequence[Migration]) -> Callable[[Connection], Applied | None]:
    """The step that applies one file, unless another runner did it before the step got the lock."""

    def apply(connection: Connection) -> Applied | None:
        begin = time.monotonic()
        applied = _applied(connection)
        _verify(migrations, applied)
        if migration.version in applied:
            return None
        connection.execute(
            renamed(_NOTE).encode(),
            [migration.version, migration.name, migration.checksum, migration.min_worker],
        )
        connection.execute(renamed(migration.text).encode())
        return Applied(migration.version, migration.name, time.monotonic() - begin)

    return apply


def _verify(migrations: Sequence[Migration], applied: Mapping[int, _Row]) -> None:
    """Raise SchemaError where it would be wrong to apply these files to a database with these rows."""
    status = _compare(migrations, applied)
    if status.changed:
        raise SchemaError(_changed_line(status.changed[0]))
    for minimum in (status.min_worker, *(migration.min_worker for migration in migrations)):
        if minimum is not None:
            _require_worker(minimum, __version__)
    for migration in migrations:
        if migration.version < status.current and migration.version not in applied:
            raise SchemaError(
                f"{migration.file} was never applied, but version {status.current} was: give the file the next number"
            )


def _compare(migrations: Sequence[Migration], applied: Mapping[int, _Row]) -> Status:
    current = max(applied, default=0)
    return Status(
        current=current,
        pending=tuple(one.file for one in migrations if one.version not in applied),
        changed=tuple(
            one.file for one in migrations if one.version in applied and applied[one.version].checksum != one.checksum
        ),
        min_worker=applied[current].min_worker if applied else None,
    )


def _changed_line(file: str) -> str:
    return f"{file} was changed after it was applied: restore it, and put the change into a file with the next number"


def _require_worker(minimum: str, worker_version: str) -> None:
    if parse_version(worker_version) < parse_version(minimum):
        raise SchemaError(
            f"worker {worker_version} is older than the schema's minimum {minimum}: install a newer queue-worker"
        )


def _base(connection: Connection) -> _Base:
    # Catalogs only: they can be read without a privilege on our schemas.
    with connection.cursor(row_factory=class_row(_Base)) as cursor:
        found = cursor.execute(renamed(_LOOK).encode()).fetchone()
    return found or _Base(False, False)


def _applied(connection: Connection) -> dict[int, _Row]:
    """The rows of the applied migrations by version; empty where there is no schema."""
    if not _base(connection).has_table:
        return {}
    with connection.cursor(row_factory=class_row(_Row)) as cursor:
        rows = cursor.execute(renamed(_APPLIED).encode())
        return {row.version: row for row in rows}
