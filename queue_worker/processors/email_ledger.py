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

TALK_SECONDS = 110.0
"""How long after its reservation a run may talk to the mail server, in seconds.

Below the two minutes for which `mail_reserve` keeps other runs out: who talked longer could be sending while another
run sends the same mail. The rest is for recording the result.
"""

_MARGIN = 1.0
"""Added to the delay of a run that stands back, in seconds, so that it does not come a moment too soon."""

_MAX_REPLY = 500


class Result(NamedTuple):
    """How it stands with one recipient.

    state: reserved, sent, bounced, deferred or unknown. reply: what the server said last. code: its reply code in
    this attempt, 0 without one. wait: the server's own wish for a pause, in seconds. down: it cannot serve anybody
    now. hold: only a person can say what became of the mail.
    """

    state: str
    reply: str = ""
    code: int = 0
    wait: float | None = None
    down: bool = False
    hold: bool = False


class Reservation(NamedTuple):
    """What `reserve` returns: the state of every recipient.

    first_at: when the mail was first tried (seconds, Unix time). deadline: when the talk with the mail server must be
    over (seconds, time.monotonic).
    """

    results: dict[str, Result]
    first_at: int
    deadline: float


def owner_of(job: Job[Any]) -> str:
    """Return the name of this run in the ledger; take it when the run starts.

    Every claim has another `read_ct`, so that a run which goes on after its time limit is not the same owner as the
    retry, in whichever process that runs.
    """
    return f"{job.queue}:{job.msg_id}:{job.message.receipt.read_ct}"


def reserve(job: Job[Any], owner: str, key: str, request_hash: str, recipients: Sequence[str]) -> Reservation:
    """Reserve the mail for this run, committed before anything is sent.

    Raises Reject where the key belongs to another mail, and Retry where another run may be sending this one; its delay
    lasts until that run is over or counts as dead.
    """
    # Before the call: the database counts from a later moment.
    deadline = time.monotonic() + TALK_SECONDS
    try:
        rows = job.call(
            "queue_worker.mail_reserve",
            key=key,
            request_hash=request_hash,
            recipients=list(recipients),
            owner=owner,
        )
    except CallRefused as error:
        if error.sqlstate == KEY_REUSE:
            raise Reject("key_reuse: the key of this mail has been used for another mail") from None
        raise
    busy = [float(row["busy_seconds"]) for row in rows if row["state"] == "busy"]
    if busy:
        raise Retry("another run is sending this mail, or died while it did", delay=max(busy) + _MARGIN)
    if rows and len(rows) < len(recipients):
        # PostgREST cuts long answers (max-rows); a recipient that is missing may have got the mail already.
        raise Retry(f"the ledger answered for {len(rows)} of {len(recipients)} recipients; name fewer in one mail")
    found = {row["recipient"]: Result(row["state"], row["reply"]) for row in rows}
    results = {recipient: found.get(recipient, Result("reserved")) for recipient in recipients}
    first_at = min((int(row["first_seconds"]) for row in rows), default=int(time.time()))
    return Reservation(results, first_at, deadline)


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
