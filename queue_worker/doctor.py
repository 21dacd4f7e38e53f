"""Looks for what is wrong with a database and its queues, and says what mends it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from queue_worker import migrate
from queue_worker._version import __version__
from queue_worker.errors import SchemaError
from queue_worker.migrate_files import BOOTSTRAP, Migration, read_migrations
from queue_worker.schema_name import renamed
from queue_worker.transport import Database, Transport

_FUNCTION = re.compile(
    r"^create (?:or replace )?(?:function|procedure) queue_worker(?:_data)?\.(\w+)\s*\(.*?\bas \$\$(.*?)\$\$;?\s*$",
    re.MULTILINE | re.DOTALL,
)


class Finding(NamedTuple):
    """One thing that is wrong: about what, in which queue (None: all), and what mends it."""

    subject: str
    queue: str | None
    finding: str
    fix: str


def examine(transport: Transport) -> list[Finding]:
    """Return what is wrong, the worst first; an empty list when all is well.

    Without our schema, or with one that is too old or too new, that is the only finding. Raises TransportUnavailable,
    and CallRefused where the role may not look.
    """
    if schema := _schema(transport):
        return [schema]
    now = datetime.now(UTC)
    rows = transport.call("queue_worker.diagnose", {"client_now": now}).dicts()
    return [*_edited(transport), *(Finding(**row) for row in rows)]


def examine_security(transport: Transport) -> list[Finding]:
    """Return what is wrong with the rights on what is ours: SQL `queue_worker.security`, see docs/security.md.

    Raises as `examine` does.
    """
    if schema := _schema(transport):
        return [schema]
    rows = transport.call("queue_worker.security", {}).dicts()
    return [Finding("security", None, f"{one['rule']}: {one['object']} {one['finding']}", one["fix"]) for one in rows]


def describe(database: Database) -> dict[str, str]:
    """Return what is behind the connection, by names for a person. Needs the schema; raises as `examine` does."""
    rows = database.transport().call("queue_worker.about", {}).dicts()
    return {"connection": database.description, **{row["name"]: row["value"] for row in rows}}


def _schema(transport: Transport) -> Finding | None:
    status = migrate.check_through(transport.call)
    try:
        migrate.require(status)
    except SchemaError as error:
        return Finding("schema", None, str(error), "queue-worker migrate")
    return None


def _edited(transport: Transport) -> list[Finding]:
    """Return the functions whose body in the database is none that the files of this version know."""
    known = bodies(read_migrations(migrate.sql_dir()))
    rows = transport.call("queue_worker.list_functions", {}).dicts()
    return [
        Finding(
            "schema", None, f"function {name} was edited in the database", f"restore it from queue-worker {__version__}"
        )
        for name in sorted({row["name"] for row in rows if row["body_md5"] not in known.get(_bare(row["name"]), ())})
    ]


def _bare(name: str) -> str:
    return name.rpartition(".")[2]


def bodies(migrations: Iterable[Migration]) -> dict[str, set[str]]:
    """Return the MD5 sums of all bodies that the files have ever given each function, by its name without schema.

    A function may have moved from the exposed schema to the other one.
    """
    found: dict[str, set[str]] = {}
    for text in (BOOTSTRAP, *(migration.text for migration in migrations)):
        for name, body in _FUNCTION.findall(text):
            known = hashlib.md5(renamed(body).encode(), usedforsecurity=False).hexdigest()
            found.setdefault(name, set()).add(known)
    return found
