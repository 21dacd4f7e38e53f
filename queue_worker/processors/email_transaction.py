"""One mail over an open connection: MAIL, RCPT for each recipient, DATA, and what each answer means (RFC 5321)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from smtplib import SMTP, SMTPServerDisconnected
from typing import NamedTuple

from queue_worker.processors.email_compose import Letter
from queue_worker.processors.email_connect import code_of, explain, reply_text
from queue_worker.processors.email_ledger import Result

# 530, 535, 538: a login is wanted, refused or too weak. That is for us to repair and no fault of the recipient.
_OUR_FAULT = (530, 535, 538)
_CHUNK = 65_536
_LEAST_FINAL = 10.0
"""Seconds that must be left for the answer to the whole mail; with less it is not completed."""


class ConnectionLost(Exception):
    """The connection cannot be used any more; `code` is 421 where the server said so, else 0."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.code = code


class Transaction(NamedTuple):
    """What became of a mail: a result for every recipient, and whether the connection can carry another mail.

    stale: the connection was dead before the mail began.
    """

    results: dict[str, Result]
    usable: bool
    stale: bool = False


def transact(
    smtp: SMTP, letter: Letter, recipients: Sequence[str], final_seconds: float, deadline: float
) -> Transaction:
    """Send `letter` and never raise: a lost connection is a result too.

    `final_seconds`: how long the server may think about the whole mail before it answers, at most until `deadline`
    (time.monotonic).
    """
    obstacle = _obstacle(smtp, letter)
    if obstacle is not None:
        return Transaction(dict.fromkeys(recipients, obstacle), usable=True)
    results: dict[str, Result] = {}
    begun = False
    try:
        refused = _mail(smtp, letter)
        begun = True
        if refused is not None:
            results = dict.fromkeys(recipients, refused)
        else:
            accepted = _recipients(smtp, recipients, results)
            if accepted and _data(smtp, letter, accepted, results, final_seconds, deadline):
                return Transaction(results, usable=True)
        _command(lambda: smtp.docmd("RSET"))
        return Transaction(results, usable=True)
    except ConnectionLost as lost:
        # Everybody without a result has not been sent to: `_data` itself decides what happens after the final dot.
        for recipient in recipients:
            results.setdefault(recipient, Result("deferred", lost.text, lost.code))
        return Transaction(results, usable=False, stale=not begun)


def _obstacle(smtp: SMTP, letter: Letter) -> Result | None:
    """Return why the server cannot take this mail at all, by the extensions that it names; None: it can."""
    if letter.utf8 and not smtp.has_extn("smtputf8"):
        return Result("bounced", "553 5.6.7 an address is not ASCII, and the server does not offer SMTPUTF8", 553)
    limit = smtp.esmtp_features.get("size", "")
    if limit.isdigit() and 0 < int(limit) < len(letter.data):
        return Result("bounced", f"552 5.3.4 the mail has {len(letter.data)} bytes, the server takes {limit}", 552)
    return None


def _command(command: Callable[[], tuple[int, bytes]]) -> tuple[int, str]:
    """Run one command; returns the reply. Raises ConnectionLost, for 421 too: the server closes after it."""
    try:
        code, reply = command()
    except OSError as error:  # smtplib's exceptions are OSErrors
        raise ConnectionLost(explain(error), 421 if code_of(error) == 421 else 0) from None
    text = f"{code} {reply_text(reply)}"
    if code == 421 or not 200 <= code <= 599:
        raise ConnectionLost(text if code == 421 else "the server sent no SMTP reply", max(code, 0))
    return code, text


def _mail(smtp: SMTP, letter: Letter) -> Result | None:
    """Begin the mail; returns the result of all recipients where the server refuses it, else None."""
    options = [f"SIZE={len(letter.data)}"] if smtp.has_extn("size") else []
    if letter.utf8:
        options.append("SMTPUTF8")
    code, text = _command(lambda: smtp.mail(letter.sender, options))
    if code // 100 == 2:
        return None
    if code == 552:
        return Result("bounced", text, code)
    # Any other refusal is about our sender address, the same for all mails: a setting to repair, not a bounce.
    return Result("deferred", f"the server refused the sender: {text}", code)


def _recipients(smtp: SMTP, recipients: Sequence[str], results: dict[str, Result]) -> list[str]:
    """Name every recipient; returns those that were accepted and adds a result for each other one."""
    accepted = []
    for recipient in recipients:
        code, text = _command(lambda address=recipient: smtp.rcpt(address))  # type: ignore[misc]
        if code // 100 == 2:
            accepted.append(recipient)
        else:
            # RFC 5321 4.5.3.1.10: 552 to RCPT means too many recipients and is temporary.
            results[recipient] = Result("deferred", text, code) if code == 552 else _verdict(code, text)
    return accepted


def _data(
    smtp: SMTP,
    letter: Letter,
    accepted: Sequence[str],
    results: dict[str, Result],
    final_seconds: float,
    deadline: float,
) -> bool:
    """Send the mail itself and add the results of the `accepted`; False where DATA was refused."""
    code, text = _command(lambda: smtp.docmd("DATA"))
    if code != 354:
        results.update(dict.fromkeys(accepted, _verdict(code, text)))
        return False
    body = _stuffed(letter.data)
    try:
        for start in range(0, len(body), _CHUNK):
            smtp.send(body[start : start + _CHUNK])
    except OSError as error:
        # The final dot was not sent, so the server must not have delivered anything.
        raise ConnectionLost(explain(error)) from None
    left = deadline - time.monotonic()
    if left < _LEAST_FINAL:
        raise ConnectionLost("the server was too slow; the mail was not completed")
    try:
        code, text = _command(lambda: _final(smtp, min(final_seconds, left)))
    except ConnectionLost as lost:
        state = "deferred" if lost.code == 421 else "unknown"
        results.update(dict.fromkeys(accepted, Result(state, lost.text, lost.code)))
        raise
    sent = code // 100 == 2
    results.update(dict.fromkeys(accepted, Result("sent", text, code) if sent else _verdict(code, text)))
    return True


def _final(smtp: SMTP, seconds: float) -> tuple[int, bytes]:
    smtp.send(b".\r\n")
    sock = smtp.sock
    if sock is None:
        raise SMTPServerDisconnected("the connection is closed")
    usual = sock.gettimeout()
    sock.settimeout(seconds)
    reply = smtp.getreply()
    sock.settimeout(usual)
    return reply


def _verdict(code: int, text: str) -> Result:
    """Return what a reply other than 2xx means for a recipient."""
    return Result("bounced" if code // 100 == 5 and code not in _OUR_FAULT else "deferred", text, code)


def _stuffed(data: bytes) -> bytes:
    """Return the mail with CRLF line ends only and its leading dots doubled (RFC 5321 4.5.2), without the final dot.

    A bare CR or LF before a dot could end the mail for some servers and smuggle in another one.
    """
    data = re.sub(rb"\r\n|\r|\n", b"\r\n", data)
    data = re.sub(rb"(?m)^\.", b"..", data)
    return data if data.endswith(b"\r\n") else data + b"\r\n"
