"""The migration files and what is made of their text: checksums, the bootstrap, one script to paste.

A file is `NNNN_name.sql`: plain SQL without transaction commands, applied in one transaction. Its head names the
lowest worker version that still works on the schema after it: `-- min_worker: X.Y.Z`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from queue_worker._version import __version__
from queue_worker.errors import SchemaError
from queue_worker.schema_name import USUAL, current

LOCK = 0x71756575655F776B
"""Key of the advisory lock that every runner takes first: the bytes of `queue_wk`."""

PGMQ_MINIMUM = "1.5"
"""The oldest pgmq that has what the engine needs: message headers."""

BOOTSTRAP = """\
create schema if not exists queue_worker;
create schema if not exists queue_worker_data;

create table if not exists queue_worker_data.migrations (
    version    int primary key,
    name       text not null,
    checksum   text not null,
    min_worker text not null,
    applied_at timestamptz not null default pg_catalog.now()
);
alter table queue_worker_data.migrations enable row level security;

-- What a worker over REST asks before it starts: the newest version, and the lowest worker version it allows.
create or replace function queue_worker.schema_version() returns table (version int, min_worker text)
language sql stable set search_path = '' as $$
    select m.version, m.min_worker from queue_worker_data.migrations m order by m.version desc limit 1
$$;
revoke all on function queue_worker.schema_version() from public;

-- Supabase's default privileges grant to these roles by name, so that a revoke from public is not enough.
do $$
declare
    outsider name;
begin
    for outsider in select r.rolname from pg_catalog.pg_roles r where r.rolname in ('anon', 'authenticated') loop
        execute pg_catalog.format('revoke all on function queue_worker.schema_version() from %I', outsider);
        execute pg_catalog.format('revoke all on table queue_worker_data.migrations from %I', outsider);
    end loop;
end $$;
"""

NAME_GUARD = """\
-- A name that was chosen may be taken: what is somebody else's is neither used nor given away.
do $$
declare
    taken text;
begin
    if exists (select from pg_catalog.pg_get_keywords() k
               where k.word = 'queue_worker' and k.catcode in ('R', 'T')) then
        raise exception 'queue_worker is a word of SQL: choose another QUEUE_WORKER_SCHEMA' using errcode = '42939';
    end if;
    if exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
               where n.nspname = 'queue_worker_data' and c.relname = 'migrations') then
        return;
    end if;
    select x.name into taken from (
        select 'schema ' || n.nspname as name from pg_catalog.pg_namespace n
            where n.nspname in ('queue_worker', 'queue_worker_data')
        union all
        -- One that an environment of this name has made, in this database or in another one, says so.
        select 'role ' || r.rolname from pg_catalog.pg_roles r
            where r.rolname in ('queue_worker', 'queue_owner', 'queue_producer', 'queue_reader', 'queue_operator')
              and pg_catalog.shobj_description(r.oid, 'pg_authid') is distinct from 'made for schema queue_worker'
    ) x order by x.name desc limit 1;
    if taken is not null then
        raise exception '% is there already, and was not made for this: choose another QUEUE_WORKER_SCHEMA', taken
            using errcode = '42939';
    end if;
end $$;
"""

_NAME = re.compile(r"([0-9]{4})_([a-z0-9_]+)\.sql")
_MIN_WORKER = re.compile(r"-- min_worker: *([0-9]+\.[0-9]+\.[0-9]+) *")


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its number, its name without number and ending, its text with LF line ends, and its header."""

    version: int
    name: str
    text: str
    min_worker: str

    @property
    def file(self) -> str:
        """The name of the file."""
        return f"{self.version:04d}_{self.name}.sql"

    @property
    def checksum(self) -> str:
        """SHA-256 of the text in hex, the same whether git checked the file out with LF or CRLF."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def sql_dir() -> Path:
    """Return the directory of the migration files: inside the installed package, or `sql/` of the repository.

    Raises SchemaError when the installation has none.
    """
    package = Path(__file__).resolve().parent
    for directory in (package / "sql", package.parent / "sql"):
        if any(directory.glob("[0-9]*.sql")):
            return directory
    raise SchemaError("the SQL files of queue_worker are missing from this installation; install queue-worker again")


def read_migrations(directory: Path) -> list[Migration]:
    """Return the migrations of `directory` in the order of their numbers.

    Raises SchemaError for a file with a wrong name, no header, not in UTF-8, or with the number of another one.
    """
    migrations: dict[int, Migration] = {}
    for path in sorted(directory.glob("*.sql")):
        migration = _read(path)
        if other := migrations.get(migration.version):
            raise SchemaError(f"{other.file} and {migration.file} have the same number; give the newer one the next")
        migrations[migration.version] = migration
    if not migrations:
        raise SchemaError(f"{directory} holds no migration files")
    return list(migrations.values())


def _read(path: Path) -> Migration:
    name = _NAME.fullmatch(path.name)
    if name is None:
        raise SchemaError(f"{path.name} is not named like a migration: 0001_name.sql, with a-z, 0-9 and _")
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise SchemaError(f"{path.name} is not encoded in UTF-8") from None
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        if header := _MIN_WORKER.fullmatch(line):
            return Migration(int(name[1]), name[2], text, header[1])
    raise SchemaError(f"{path.name} does not begin with the line `-- min_worker: X.Y.Z`")


def parse_version(version: str) -> tuple[int, int, int]:
    """Return `X.Y.Z` as three numbers that compare; what follows them (`rc1`, `.dev0`) does not count.

    Raises SchemaError for other texts.
    """
    numbers = re.match(r"([0-9]+)\.([0-9]+)(?:\.([0-9]+))?", version)
    if numbers is None:
        raise SchemaError(f"{version!r} is not a version such as 0.1.0")
    return int(numbers[1]), int(numbers[2]), int(numbers[3] or 0)


def bootstrap() -> str:
    """Return the SQL of the schemas and the table of migrations; a chosen name is checked before it is taken."""
    return BOOTSTRAP if current() == USUAL else f"{NAME_GUARD}\n{BOOTSTRAP}"


def script(migrations: list[Migration]) -> str:
    """Return one SQL script that does what `queue-worker migrate` does; running it again changes nothing.

    It is for people who have an SQL editor only, so pgmq must come from the server: the SQL of the package `pgmq`
    is not part of it.
    """
    parts = [_HEAD.format(version=__version__, lock=LOCK, minimum=PGMQ_MINIMUM), bootstrap()]
    before = 0
    for migration in migrations:
        parts.append(_guarded(migration, before))
        before = migration.version
    parts.append("commit;\n\nselect version, min_worker from queue_worker.schema_version();\n")
    return "\n".join(parts)


def setup_script(pgmq_sql: str) -> str:
    """Return what comes before the first migration, as a file of its own: pgmq and the schemas.

    `pgmq_sql` is run where the server does not offer the extension.
    """
    body = _tag("body", pgmq_sql)
    block = _PGMQ.format(minimum=PGMQ_MINIMUM, body=body, text=pgmq_sql)
    outer = _tag("pgmq", block)
    head = "-- queue_worker: pgmq, and the schemas. Running it again changes nothing."
    return f"{head}\n\ndo {outer}\n{block}{outer};\n\n{bootstrap()}"


def single_script(migration: Migration, before: int) -> str:
    """Return one migration as a file of its own; `before` is the version that it builds on, or 0."""
    return f"-- queue_worker: {migration.file}. Running it again changes nothing.\n\n{_guarded(migration, before)}"


def _guarded(migration: Migration, before: int) -> str:
    """The migration in a DO block that runs it unless it was applied; `before` is the version it builds on, or 0."""
    body = _tag("body", migration.text)
    block = _GUARD.format(
        version=migration.version,
        file=migration.file,
        name=migration.name,
        checksum=migration.checksum,
        min_worker=migration.min_worker,
        before=before,
        body=body,
        text=migration.text,
    )
    outer = _tag("migration", block)
    return f"do {outer}\n{block}{outer};\n"


def _tag(name: str, text: str) -> str:
    """A dollar quote that `text` does not hold."""
    number = 1
    while (tag := f"$qw_{name}_{number}$") in text:
        number += 1
    return tag


_HEAD = """\
-- queue_worker {version}: paste the whole file into the SQL editor and run it. Running it again changes nothing.

begin;
select pg_catalog.set_config('search_path', '', true), pg_catalog.set_config('statement_timeout', '0', true);
select pg_catalog.pg_advisory_xact_lock({lock});
set local lock_timeout = '5s';
set local client_min_messages = 'warning';

do $qw$
begin
    if pg_catalog.to_regtype('pgmq.message_record') is null then
        if not exists (select from pg_catalog.pg_available_extensions e where e.name = 'pgmq') then
            raise exception 'this server does not offer the extension pgmq'
                using hint = 'Run `queue-worker migrate` with the database URL: it brings its own copy.';
        end if;
        create extension if not exists pgmq;
    end if;
    if not exists (
        select from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.typrelid = a.attrelid
        where t.oid = pg_catalog.to_regtype('pgmq.message_record') and a.attname = 'headers'
    ) then
        raise exception 'this pgmq is too old: queue_worker needs {minimum} or newer'
            using hint = 'alter extension pgmq update;';
    end if;
end $qw$;
"""

_PGMQ = """\
begin
    if pg_catalog.to_regtype('pgmq.message_record') is null then
        if exists (select from pg_catalog.pg_available_extensions e where e.name = 'pgmq') then
            begin
                create extension if not exists pgmq;
            exception when others then
                raise exception 'the extension pgmq cannot be made here: %', sqlerrm
                    using hint = 'Switch it on in the dashboard (Integrations > Queues), then run this again.';
            end;
        else
            execute {body}
{text}
{body};
        end if;
    end if;
    if not exists (
        select from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.typrelid = a.attrelid
        where t.oid = pg_catalog.to_regtype('pgmq.message_record') and a.attname = 'headers'
    ) then
        raise exception 'this pgmq is too old: queue_worker needs {minimum} or newer'
            using hint = 'alter extension pgmq update;';
    end if;
end
"""

_GUARD = """\
declare
    applied text := (select m.checksum from queue_worker_data.migrations m where m.version = {version});
begin
    if applied = '{checksum}' then
        return;
    elsif applied is not null then
        raise exception '{file} was changed after it was applied';
    elsif {before} <> coalesce((select max(m.version) from queue_worker_data.migrations m), 0) then
        raise exception '{file} builds on version {before}, which is not the version of this database';
    end if;
    insert into queue_worker_data.migrations (version, name, checksum, min_worker)
        values ({version}, '{name}', '{checksum}', '{min_worker}');
    execute {body}
{text}
{body};
end
"""
