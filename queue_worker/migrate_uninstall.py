"""Taking the schema away again: what is ours goes, pgmq stays with all its queues and messages."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg.rows import class_row

from queue_worker.errors import SchemaError
from queue_worker.migrate_files import sql_dir
from queue_worker.migrate_session import Connection, session
from queue_worker.schema_name import renamed

_LOOK = """
select
    (select pg_catalog.count(*) from queue_worker_data.dead_letters) as dead_letters,
    (select pg_catalog.count(*) from queue_worker_data.schedules) as schedules,
    (select pg_catalog.count(*) from queue_worker_data.payment_ledger) as payments,
    (select pg_catalog.count(*) from queue_worker_data.mails) as mails,
    (select pg_catalog.count(*) from queue_worker_data.workers w
     where w.last_seen > pg_catalog.now() - interval '45 seconds') as workers
"""

_THERE = "select pg_catalog.to_regnamespace('queue_worker_data') is not null"


@dataclass(frozen=True, slots=True)
class Loss:
    """What goes with the schema, as counts of rows; `workers` are those that live."""

    dead_letters: int
    schedules: int
    payments: int
    mails: int
    workers: int

    def lines(self) -> list[str]:
        """Return what will be gone, a line each."""
        return [
            f"{self.dead_letters} dead letters, with their payloads",
            f"{self.schedules} schedules",
            f"{self.payments} payments in the ledger, and with them the protection against charging one twice",
            f"{self.mails} mails in the ledger, and with them the protection against sending one twice",
        ]


def look(conninfo: str) -> Loss:
    """Count what `uninstall` would take away; raises SchemaError where nothing of ours is there."""
    with session(conninfo) as runner:
        return _look(runner.connection)


def uninstall(conninfo: str) -> Loss:
    """Take the schema away, in one transaction; returns what went with it.

    Queues, archives and the messages in them stay, and belong to the role of `conninfo`. Raises SchemaError where there
    is no schema, the role may not do it, or workers still live.
    """
    text = (sql_dir() / "uninstall" / "uninstall.sql").read_text(encoding="utf-8")

    def remove(connection: Connection) -> Loss:
        loss = _look(connection)
        if loss.workers:
            raise SchemaError(f"{loss.workers} workers are running: stop them first")
        connection.execute(renamed(text).encode())
        return loss

    with session(conninfo) as runner:
        return runner.run("the removal", remove, text)


def _look(connection: Connection) -> Loss:
    if connection.execute(renamed(_THERE).encode()).fetchone() != (True,):
        raise SchemaError(renamed("there is no schema queue_worker in this database"))
    with connection.cursor(row_factory=class_row(Loss)) as cursor:
        found = cursor.execute(renamed(_LOOK).encode()).fetchone()
    assert found is not None  # noqa: S101 - one row of counts
    return found
