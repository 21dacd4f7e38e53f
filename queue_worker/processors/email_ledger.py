"""The ledger of mails: who has got which mail; see sql/0003_email.sql."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from queue_worker.errors import CallRefused, Reject, Retry, TransportUnavailable
from queue_worker.message import clean_text
from queue_worker.processor import Job

KEY_REUSE = "QW409"
"""SQLSTATE of `mail_reserve` where the key belongs to another mail."""

_MAX_REPLY = 500


class Result(NamedTuple):
    """How it stands with one recipient.

    state: reserved, sent, bounced, deferred or unknown. reply: what the server said last. code: its reply code in
    this attempt, 0 without one.
    """

    state: str
    reply: str = ""
    code: int = 0


class Reservation(NamedTuple):
    """What `reserve` returns: the state of every recipient, and when the mail was first tried (seconds, Unix time)."""

    results: dict[str, Result]
    first_at: int


def reserve(job: Job[Any], key: str, request_hash: str, recipients: Sequence[str]) -> Reservation:
    """Reserve the mail for this run, committed before anything is sent.

    Raises Reject where the key belongs to another mail, and Retry where another message is sending this one.
    """
    try:
        rows = job.call(
            "queue_worker.mail_reserve",
            key=key,
            request_hash=request_hash,
            recipients=list(recipients),
            owner=f"{job.queue}:{job.msg_id}",
        )
    except CallRefused as error:
        if error.sqlstate == KEY_REUSE:
            raise Reject("key_reuse: the key of this mail has been used for another mail") from None
        raise
    if any(row["state"] == "busy" for row in rows):
        raise Retry("another message with the same key is sending this mail")
    if rows and len(rows) < len(recipients):
        # PostgREST cuts long answers (max-rows); a recipient that is missing may have got the mail already.
        raise Retry(f"the ledger answered for {len(rows)} of {len(recipients)} recipients; name fewer in one mail")
    found = {row["recipient"]: Result(row["state"], row["reply"]) for row in rows}
    results = {recipient: found.get(recipient, Result("reserved")) for recipient in recipients}
    return Reservation(results, min((int(row["first_seconds"]) for row in rows), default=int(time.time())))


def record(job: Job[Any], key: str, results: Mapping[str, Result]) -> None:
    """Record what became of each recipient; waits out a short loss of the database.

    Giving up means that the next run finds the mail `unknown` and may send it twice. Raises TransportUnavailable.
    """
    rows = [
        {"recipient": recipient, "state": result.state, "reply": clean_reply(result.reply)}
        for recipient, result in results.items()
    ]
    if not rows:
        return
    for attempt in Retrying(
        retry=retry_if_exception_type(TransportUnavailable),
        wait=wait_exponential(multiplier=0.1, max=2),
        stop=stop_after_delay(20),
        reraise=True,
    ):
        with attempt:
            job.call("queue_worker.mail_record", key=key, results=rows)


def clean_reply(reply: str) -> str:
    """Return a server's reply as one short line that can be stored."""
    line = " ".join(clean_text(reply).split())
    return line if len(line) <= _MAX_REPLY else line[: _MAX_REPLY - 1] + "…"
