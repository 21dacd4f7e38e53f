"""Before the loops: wait for the database, check the schema, make the queues."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from queue_worker import events, migrate
from queue_worker.errors import CallRefused, ConfigError, TransportUnavailable
from queue_worker.pauses import Backoff
from queue_worker.schema_name import renamed
from queue_worker.sqlstates import OTHER_ENVIRONMENT
from queue_worker.transport import Database, Transport
from queue_worker.transport.rest_errors import SETTINGS

# Not allowed, not a valid name, not supported: these stay as they are. All else, such as a lock, is waited for.
_NEEDS_A_PERSON = ("42501", "22023", "0A000", "42883", "3F000")


def prepare(
    database: Database,
    queues: Mapping[str, bool],
    *,
    migrating: bool,
    ending: Callable[[], bool],
    pause: Callable[[float], object],
    waiting: Callable[[], None],
) -> bool:
    """Bring the database of a worker into the state that it needs; False when `ending` became true meanwhile.

    `queues`: those to make, and whether each keeps the order of its groups. `migrating` applies missing migrations
    first. A database that is away is waited for without end: `pause` waits for some seconds, `waiting` is told each
    time. Raises ConfigError (or SchemaError) for what waiting cannot mend.
    """
    backoff = Backoff()
    told = ""
    transport = database.transport()
    while not ending():
        try:
            if migrating:
                migrate.up(database.conninfo(), report=lambda line: events.emit("migrate", line=line))
            migrate.require(migrate.check_through(transport.call))
            for queue, ordered in queues.items():
                _make_queue(transport, queue, ordered)
            return True
        except CallRefused as error:
            if error.sqlstate in SETTINGS:
                raise ConfigError(str(error)) from None
            raise
        except TransportUnavailable as error:
            text = str(error)
            if error.refused:
                raise ConfigError(f"the database refuses this worker: {text}; check DATABASE_URL") from None
            if text != told:
                told = text
                events.emit("database.lost", queue="*", error=text)
            waiting()
            pause(backoff.next())
        finally:
            transport.close()
    return False


def _make_queue(transport: Transport, queue: str, ordered: bool) -> None:
    try:
        transport.call("queue_worker.create_queue", {"queue": queue, "ordered": ordered})
    except CallRefused as error:
        if error.sqlstate == OTHER_ENVIRONMENT:
            raise ConfigError(str(error)) from None
        if error.sqlstate not in _NEEDS_A_PERSON:
            raise TransportUnavailable(f"queue {queue!r} cannot be made now: {error}") from None
        statement = f"select queue_worker.create_queue('{queue}'{', ordered => true' if ordered else ''});"
        raise ConfigError(
            f"queue {queue!r} cannot be made ({error}); let an administrator run: {renamed(statement)}"
        ) from None
