"""`queue-worker email check` and `email test`."""

from __future__ import annotations

import socket
import threading
import time
from datetime import datetime
from typing import Annotated, Any

import typer

from queue_worker._version import __version__
from queue_worker.cli import common
from queue_worker.cli.common import AsJson
from queue_worker.cli.database import Operator, database
from queue_worker.cli.failure import FAILED
from queue_worker.cli.output import first_line, moment, print_json, print_table
from queue_worker.config import Settings
from queue_worker.errors import UsageError
from queue_worker.log import escape

_POLL = 0.25


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = common.group("email", "Check how mail goes out.")
    common.command(group, "check")(check)
    common.command(group, "test")(send_test)


def check(as_json: AsJson = False) -> int:
    """Try connection, TLS and login. Sends nothing."""
    from queue_worker.builtin import email_config
    from queue_worker.processors.email_check import check as steps_of

    steps = steps_of(email_config(common.settings()))
    if as_json:
        print_json([step._asdict() for step in steps])
    else:
        print_table(("step", "", "detail"), [(one.step, "ok" if one.ok else "FAILED", one.detail) for one in steps])
    return 0 if all(step.ok for step in steps) else FAILED


def send_test(
    address: Annotated[
        str | None, typer.Argument(metavar="ADDRESS", help="To whom (default: SMTP_FROM_EMAIL).", show_default=False)
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until a worker has sent it.")] = False,
    seconds: Annotated[int, typer.Option("--seconds", min=1, max=86_400, help="How long --wait waits.")] = 60,
) -> int:
    """Put a test mail into the queue `email` and print its id."""
    settings = common.settings()
    payload = _mail(settings, address)
    with database(settings) as operator:
        msg_id = operator.value("send", queue="email", payload=payload)
        print(msg_id, flush=True)
        return _wait(operator, msg_id, seconds) if wait else 0


def _mail(settings: Settings, address: str | None) -> dict[str, Any]:
    from queue_worker.processors.email_address import parse_mailbox

    to = address or settings.smtp_from_email
    if not to:
        raise UsageError("say to whom: `queue-worker email test ADDRESS`, or set SMTP_FROM_EMAIL")
    try:
        parse_mailbox(to)
    except ValueError as error:
        raise UsageError(f"{to!r:.80} is no address: {error}") from None
    text = f"This test mail was sent by queue-worker {__version__} from {socket.gethostname()}."
    return {"to": to, "subject": "Test mail from queue-worker", "text": text}


def _wait(operator: Operator, msg_id: int, seconds: int) -> int:
    """Say what becomes of the mail, until it is done or dead or the time is over."""
    end = time.monotonic() + seconds
    told = 0
    while True:
        rows = operator.call("message", queue="email", msg_id=msg_id)
        row: dict[str, Any] = rows[0] if rows else {"state": "deleted", "failures": []}
        for failure in row["failures"][told:]:
            told += 1
            again = moment(datetime.fromisoformat(failure["retry_at"])) if failure["retry_at"] else "no more"
            line = f"attempt {failure['attempt']}: {first_line(failure['error'], 500)}; runs again: {again}"
            print(escape(line), flush=True)
        if row["state"] in ("archived", "deleted"):
            print("sent")
            return 0
        if row["state"] == "cancelled":
            print("cancelled by a person")
            return FAILED
        if row["state"] == "dead":
            print(f"dead letter {row['dead_id']}: `queue-worker dead show email {row['dead_id']}` shows all of it")
            return FAILED
        if time.monotonic() > end:
            print(f"after {seconds} s it is still {row['state']}; {_who(operator)}")
            return FAILED
        threading.Event().wait(_POLL)


def _who(operator: Operator) -> str:
    serving = [one for one in operator.call("list_workers") if one["alive"] and "email" in one["queues"]]
    if not serving:
        return "no living worker serves queue 'email': start one with `queue-worker start`"
    return f"{len(serving)} living worker{'s' if len(serving) > 1 else ''} serve queue 'email'"
