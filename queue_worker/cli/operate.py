"""Commands that act on live messages and whole queues: cancel, complete, purge, drop, purge-subject, audit."""

from __future__ import annotations

from typing import Annotated

import typer

from queue_worker.cli import common
from queue_worker.cli.common import AsJson, QueueName
from queue_worker.cli.confirm import Yes, confirmed
from queue_worker.cli.database import Operator, database
from queue_worker.cli.failure import FAILED
from queue_worker.cli.output import document, first_line, print_json, print_table
from queue_worker.cli.values import ids, queue_name
from queue_worker.errors import UsageError

MessageIds = Annotated[
    list[str], typer.Argument(metavar="ID...", help="Ids of the messages: 3 or 3,4.", show_default=False)
]

_SUBJECT_CHUNK = 10_000


def register(app: typer.Typer) -> None:
    """Add the commands."""
    common.command(app, "cancel")(cancel)
    common.command(app, "complete")(complete)
    common.command(app, "purge")(purge)
    common.command(app, "drop")(drop)
    common.command(app, "purge-subject")(purge_subject)
    common.command(app, "audit")(audit)


def cancel(queue: QueueName, msg_ids: MessageIds, as_json: AsJson = False) -> int:
    """Take messages out of a queue, even running. They stay in the archive as cancelled."""
    return _each("cancel", "cancelled", queue, msg_ids, as_json)


def complete(queue: QueueName, msg_ids: MessageIds, as_json: AsJson = False) -> int:
    """Settle messages by hand, as done."""
    return _each("complete", "completed", queue, msg_ids, as_json)


def _each(function: str, word: str, queue: str, msg_ids: list[str], as_json: bool) -> int:
    """Do `function` to each message; returns the exit code: all were there, or some were not."""
    queue_name(queue)
    numbers = ids(msg_ids)
    if not numbers:
        raise UsageError(f"say which messages: `queue-worker {function} {queue} ID`")
    with database(common.settings()) as operator:
        done = {number: bool(operator.value(function, queue=queue, msg_id=number)) for number in numbers}
    if as_json:
        print_json({"queue": queue, "messages": [{"id": number, word: was} for number, was in done.items()]})
    else:
        for number, was in done.items():
            missing = f"not in queue {queue!r}; `queue-worker show {queue} {number}` says where it is"
            print(f"{number} {word if was else missing}")
    return 0 if all(done.values()) else FAILED


def purge(queue: QueueName, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete the live messages of a queue. Those are what waits, is delayed or runs; dead letters and archive stay."""
    gone = None
    with database(common.settings()) as operator:
        if confirmed("purge", f"{_live(operator, queue)} of queue {queue!r}", yes):
            gone = int(operator.value("purge", queue=queue))
    if as_json:
        print_json({"queue": queue, "deleted": gone or 0})
    else:
        print("nothing deleted" if gone is None else f"{gone} deleted from queue {queue!r}")


def drop(queue: QueueName, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete a queue, messages and archive. Its dead letters stay."""
    with database(common.settings()) as operator:
        dropped = confirmed("drop", f"queue {queue!r} with its archive and {_live(operator, queue)}", yes)
        if dropped:
            operator.call("drop_queue", queue=queue)
    if as_json:
        print_json({"queue": queue, "dropped": dropped})
    else:
        print(f"queue {queue!r} is gone" if dropped else "nothing deleted")


def _live(operator: Operator, queue: str) -> str:
    row = operator.queue(queue)
    count = sum(row[state] or 0 for state in ("waiting", "delayed", "running"))
    return "1 message" if count == 1 else f"{count} messages"


def purge_subject(
    key: Annotated[
        str,
        typer.Argument(metavar="KEY", help="What names the person in payloads: an id, an address.", show_default=False),
    ],
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete what concerns one person. Messages, archive, dead letters, failures, and ledgers but for payments."""
    total = None
    with database(common.settings()) as operator:
        what = "every message, archived message, dead letter and ledger entry that names this person"
        if confirmed("purge-subject", what, yes):
            total = 0
            while gone := int(operator.value("purge_subject", key=key, max_count=_SUBJECT_CHUNK)):
                total += gone
    if as_json:
        print_json({"deleted": total or 0})
    else:
        print("nothing deleted" if total is None else f"{total} deleted")


def audit(
    queue: Annotated[
        str | None, typer.Argument(metavar="[QUEUE]", help="Of one queue (default: all).", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="Show so many, newest first.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Show who did what to the queues, newest first."""
    if queue is not None:
        queue_name(queue)
    with database(common.settings()) as operator:
        rows = operator.call("list_audit", queue=queue, max_count=limit)
    if as_json:
        print_json(rows)
    elif not rows:
        print("nobody did anything yet" if queue is None else f"nobody did anything to queue {queue!r} yet")
    else:
        print_table(
            ("at", "actor", "action", "queue", "detail"),
            [
                (row["at"], row["actor"], row["action"], row["queue"], first_line(document(row["detail"], indent=None)))
                for row in rows
            ],
        )
