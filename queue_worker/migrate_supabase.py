"""The migrations as files of the Supabase CLI: `<UTC timestamp>_name.sql`, applied by `supabase db push` in that order.

Names: Supabase's guide "Database migrations".
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from queue_worker.errors import SchemaError, UsageError
from queue_worker.migrate_files import Migration, read_migrations, setup_script, single_script, sql_dir
from queue_worker.schema_name import current, renamed

_ANY = re.compile(r"([0-9]{14})_.*\.sql")
_STAMP = "%Y%m%d%H%M%S"


def write(folder: Path, pgmq_sql: str, *, now: datetime | None = None, source: Path | None = None) -> list[Path]:
    """Write what `folder` lacks of the migrations, after every file that is there; returns the new files.

    `pgmq_sql`: pgmq itself, for servers that do not offer the extension. `source`: where the migrations are (None:
    those of the package). Raises UsageError where there is no such folder, SchemaError where a file of ours was
    changed.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}: run `supabase init` first, or name its migrations folder")
    migrations = read_migrations(source or sql_dir())
    ours = re.compile(rf"[0-9]{{14}}_{current()}_([0-9]{{4}})_[a-z0-9_]+\.sql")
    there = {int(found[1]): path for path in sorted(folder.glob("*.sql")) if (found := ours.fullmatch(path.name))}
    wanted = [(0, "pgmq", renamed(setup_script(pgmq_sql)))]
    before = 0
    for migration in migrations:
        text = renamed(single_script(migration, before))
        _compare(there.get(migration.version), migration, text)
        wanted.append((migration.version, migration.name, text))
        before = migration.version
    stamp = _first(folder, now or datetime.now(UTC))
    written = []
    for number, name, text in wanted:
        if number not in there:
            path = folder / f"{stamp.strftime(_STAMP)}_{current()}_{number:04d}_{name}.sql"
            path.write_text(text, encoding="utf-8", newline="\n")
            written.append(path)
            stamp += timedelta(seconds=1)
    return written


def _compare(path: Path | None, migration: Migration, text: str) -> None:
    if path is not None and path.read_text(encoding="utf-8") != text:
        raise SchemaError(
            f"{path} is not what this version has for {migration.file}: restore it; a migration is never changed"
        )


def _first(folder: Path, now: datetime) -> datetime:
    """The timestamp of the first new file: after now, and after all that are there."""
    latest = max((found[1] for path in folder.glob("*.sql") if (found := _ANY.fullmatch(path.name))), default="")
    if latest and latest >= now.strftime(_STAMP):
        try:
            return datetime.strptime(latest, _STAMP).replace(tzinfo=UTC) + timedelta(seconds=1)
        except ValueError:
            raise UsageError(f"{folder}: a file is called {latest}_..., which is no timestamp") from None
    return now
