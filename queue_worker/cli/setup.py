"""Commands about the installation: migrate, config, health."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from queue_worker.cli import common
from queue_worker.cli.common import AsJson
from queue_worker.cli.confirm import Yes, confirmed
from queue_worker.cli.database import database
from queue_worker.cli.failure import FAILED, say
from queue_worker.cli.output import print_json, print_table
from queue_worker.errors import ConfigError, UsageError
from queue_worker.schema_name import renamed, use

if TYPE_CHECKING:
    from queue_worker.migrate import Status


def register(app: typer.Typer) -> None:
    """Add the commands."""
    common.command(app, "migrate")(migrate)
    common.command(app, "config")(config)
    common.command(app, "health")(health)


def migrate(
    check: Annotated[bool, typer.Option("--check", help="Only say whether the schema is current.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    print_sql: Annotated[bool, typer.Option("--print", help="Print one SQL script, for an SQL editor.")] = False,
    supabase: Annotated[
        Path | None, typer.Option("--supabase", help="Write files for the Supabase CLI: supabase/migrations.")
    ] = None,
    uninstall: Annotated[
        bool, typer.Option("--uninstall", help="Take the schema away; queues and messages stay.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Bring pgmq and the schema queue_worker into the database."""
    from queue_worker import migrate as runner

    if check + dry_run + print_sql + uninstall + (supabase is not None) > 1:
        raise UsageError("give one of --check, --dry-run, --print, --supabase and --uninstall")
    if print_sql or supabase is not None:
        use(common.settings().db_schema)
    if print_sql:
        print(runner.print_sql(), end="")
        return
    if supabase is not None:
        _write_files(supabase)
        return
    from queue_worker.opening import conninfo_of

    settings = common.settings()
    if check and settings.transport == "supabase":
        with database(settings) as operator:
            _current(runner.check_through(operator.transport.call))
        return
    # The share of an embedded server lasts as long as this object.
    conninfo = conninfo_of(settings)
    address = conninfo()
    if uninstall:
        _uninstall(address, yes)
        return
    if dry_run:
        steps = runner.dry_run(address)
        print("\n".join(steps or ["nothing to do: the schema is current"]))
        return
    if not check:
        runner.up(address, report=lambda line: print(line, flush=True))
    _current(runner.check(address))


def _current(status: Status) -> None:
    from queue_worker.migrate import require

    require(status)
    print(f"the schema is at version {status.current}, which is current")


def _write_files(folder: Path) -> None:
    from queue_worker.migrate_pgmq import bundled
    from queue_worker.migrate_supabase import write

    written = write(folder, bundled("pgmq.sql"))
    for path in written:
        print(path)
    print("now run: supabase db push" if written else "nothing to write: all files are there")


def _uninstall(address: str, yes: bool) -> None:
    from queue_worker.migrate_uninstall import look, uninstall

    loss = look(address)
    say(renamed("This takes the schema queue_worker away. Queues and their messages stay; these are gone for ever:"))
    for line in loss.lines():
        say(f"  {line}")
    if not confirmed("migrate --uninstall", renamed("the schema queue_worker"), yes):
        return
    uninstall(address)
    print("the schema is gone; pgmq, its queues and their messages are as they were")


def config(as_json: AsJson = False) -> None:
    """Print each setting, its value and source. Secrets are masked."""
    settings = common.settings(warn=True)
    lines = settings.explain()
    if as_json:
        print_json([line._asdict() for line in lines])
    else:
        print_table(("setting", "value", "source"), lines)
    try:
        settings.require_database()
    except ConfigError as error:
        say(f"warning: {error}")


def health(as_json: AsJson = False) -> int:
    """Say whether the workers here are well; asks no database."""
    from queue_worker.health import look

    well, line = look(common.settings().state_dir)
    if as_json:
        print_json({"healthy": well, "detail": line})
    else:
        print(line)
    return 0 if well else FAILED
