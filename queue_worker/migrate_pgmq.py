"""Bringing pgmq itself into a database: the server's extension, else the SQL that the PyPI package `pgmq` ships."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import psycopg
from psycopg.rows import class_row

from queue_worker.errors import SchemaError
from queue_worker.migrate_files import PGMQ_MINIMUM

Connection = psycopg.Connection[Any]

# Catalogs only: they can be read without a privilege on the schema pgmq.
_LOOK = """
select
    exists (
        select from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace
        where n.nspname = 'pgmq' and t.typname = 'message_record'
    ) as installed,
    exists (
        select from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.typrelid = a.attrelid
        join pg_catalog.pg_namespace n on n.oid = t.typnamespace
        where n.nspname = 'pgmq' and t.typname = 'message_record' and a.attname = 'headers'
    ) as has_headers,
    (select e.extversion from pg_catalog.pg_extension e where e.extname = 'pgmq') as extension,
    (select e.default_version from pg_catalog.pg_available_extensions e where e.name = 'pgmq') as offered
"""


@dataclass(frozen=True, slots=True)
class Pgmq:
    """What a database has of pgmq: `extension` and `offered` are versions, None where there is none."""

    installed: bool
    has_headers: bool
    extension: str | None
    offered: str | None

    def require(self) -> None:
        """Raise SchemaError where the installed pgmq is older than PGMQ_MINIMUM."""
        if self.has_headers:
            return
        if self.extension is None:
            raise SchemaError(
                f"the pgmq in this database was installed from plain SQL older than {PGMQ_MINIMUM}; install a newer one"
            )
        line = f"pgmq {self.extension} is too old, {PGMQ_MINIMUM} or newer is needed"
        if self.extension == self.offered:
            raise SchemaError(
                f"{line}, and the server offers no newer one: upgrade it, then run `alter extension pgmq update;`"
            )
        raise SchemaError(f"{line}: run `alter extension pgmq update;` in this database")

    @property
    def plan(self) -> str:
        """What `install` would do, as one line; empty where pgmq is there."""
        if self.installed:
            return ""
        if self.offered is not None:
            return f"create extension pgmq (version {self.offered})"
        return f"install pgmq {bundled('VERSION').strip()} from the SQL of the Python package pgmq"


def look(connection: Connection) -> Pgmq:
    """Say what the database has of pgmq."""
    with connection.cursor(row_factory=class_row(Pgmq)) as cursor:
        found = cursor.execute(_LOOK).fetchone()
    return found or Pgmq(False, False, None, None)


def install(connection: Connection) -> str:
    """Bring pgmq into the database, inside the caller's transaction; return the line of what was done, or "".

    Raises SchemaError where pgmq is too old or the role may not create the extension.
    """
    pgmq = look(connection)
    if pgmq.offered is not None and not pgmq.installed:
        _create_extension(connection)
    elif not pgmq.installed:
        connection.execute(bundled("pgmq.sql").encode())
    look(connection).require()
    return pgmq.plan


def _create_extension(connection: Connection) -> None:
    try:
        connection.execute("create extension if not exists pgmq")
    except psycopg.errors.InsufficientPrivilege:
        info = connection.info
        raise SchemaError(
            f'the role "{info.user}" may not create the extension pgmq; an administrator runs this once '
            f'in the database "{info.dbname}": create extension pgmq;'
        ) from None


def bundled(name: str) -> str:
    """Return a file of the SQL that the package `pgmq` ships; raises SchemaError where it has none."""
    try:
        return files("pgmq").joinpath("sql", name).read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        raise SchemaError(
            "this server does not offer the extension pgmq, and the Python package pgmq holds no SQL; "
            "install queue-worker again"
        ) from None
