"""Looks for what is wrong with a database, its queues and the way there, and says what mends it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from queue_worker import migrate
from queue_worker.errors import CallRefused, SchemaError
from queue_worker.transport import Database, Transport
from queue_worker.transport.rest_errors import NOT_EXPOSED


class Finding(NamedTuple):
    """One thing that is wrong: about what, in which queue (None: all), and what mends it."""

    subject: str
    queue: str | None
    finding: str
    fix: str


class Report(NamedTuple):
    """What is behind a connection, by names for a person, and what is wrong, the worst first."""

    about: Mapping[str, str]
    findings: list[Finding]


def examine(database: Database, *, security: bool = False) -> Report:
    """Look at the database; `security`: at the rights on what is ours, see docs/security.md.

    Without our schema, with one that is too old or too new, or one that the API hides, that is the only finding.
    Raises TransportUnavailable, and CallRefused where the role may not look.
    """
    transport = database.transport()
    if first := _entrance(transport):
        return Report(database.about(), [first])
    exposed = database.exposed_schemas()
    now = datetime.now(UTC)
    rows = transport.call("queue_worker.about", {"client_now": now, "exposed": exposed}).dicts()
    about = {**database.about(), **{row["name"]: row["value"] for row in rows}}
    return Report(about, _rights(transport, exposed) if security else _state(transport))


def _state(transport: Transport) -> list[Finding]:
    rows = transport.call("queue_worker.diagnose", {"client_now": datetime.now(UTC)}).dicts()
    return [Finding(**row) for row in rows]


def _rights(transport: Transport, exposed: list[str] | None) -> list[Finding]:
    rows = transport.call("queue_worker.security", {"exposed": exposed}).dicts()
    return [Finding("security", None, f"{one['rule']}: {one['object']} {one['finding']}", one["fix"]) for one in rows]


def _entrance(transport: Transport) -> Finding | None:
    """Return what keeps everything else from being asked."""
    try:
        migrate.require(migrate.check_through(transport.call))
    except SchemaError as error:
        return Finding("schema", None, str(error), "queue-worker migrate")
    except CallRefused as refusal:
        if refusal.sqlstate != NOT_EXPOSED:
            raise
        finding, _, fix = str(refusal).partition(": ")
        return Finding("api", None, finding, fix)
    return None
