"""The processor of queue `email`: one mail per message, sent once per key and recipient.

The ledger is written before and after the talk with the mail server, so that a rerun knows who has got the mail. What
remains is the answer that got lost: by then the server may have taken the mail or not, and the policy decides.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from queue_worker.errors import InvalidPayload, Reject, Retry, Unavailable
from queue_worker.log import mask_address
from queue_worker.processor import Job, Processor
from queue_worker.processors.email_check import CheckStep, check
from queue_worker.processors.email_compose import Mail, content_of, mail_of
from queue_worker.processors.email_config import EmailConfig
from queue_worker.processors.email_ledger import Result, clean_reply, owner_of, record, reserve
from queue_worker.processors.email_payload import Attachment, EmailPayload
from queue_worker.processors.email_resend import ResendClient
from queue_worker.processors.email_smtp import SmtpClient
from queue_worker.processors.email_templates import Templates
from queue_worker.processors.email_transport import MailTransport, Outbox

__all__ = [
    "Attachment",
    "CheckStep",
    "EmailConfig",
    "EmailPayload",
    "Storage",
    "check",
    "mail_transport",
    "make_processor",
]

_GREYLISTED = (450, 451)
_CLOCK_MARGIN = 300.0
"""Seconds that our clock, the database's and the provider's may differ."""


class Storage(Protocol):
    """Where attachments lie. Both methods raise FileNotFoundError, and OSError when the place does not answer."""

    def size(self, key: str) -> int:
        """Return the size of an object in bytes."""

    def read(self, key: str) -> bytes:
        """Return the content of an object."""


def make_processor(config: EmailConfig, storage: Storage) -> Processor:
    """Return the processor of queue `email`. Raises ConfigError for settings that cannot work."""
    handler = EmailHandler(config, storage)
    return Processor("email", handler, EmailPayload, builtin=True, close=handler.close)


class EmailHandler:
    """Sends one mail per call; safe for several threads."""

    def __init__(self, config: EmailConfig, storage: Storage) -> None:
        self._config = config
        self._storage = storage
        self._templates = Templates(config.templates_dir)
        _ = config.sender, config.redirect  # raise here, and not for each mail
        self._transport = mail_transport(config)

    def close(self) -> None:
        """Close the connections to the mail server."""
        self._transport.close()

    def __call__(self, job: Job[EmailPayload]) -> None:
        """Send the mail to everybody who has not got it. Raises InvalidPayload, Reject, Retry and Unavailable."""
        owner = owner_of(job)
        payload = job.payload
        key = payload.key or job.key
        recipients = payload.recipients()
        more = f" +{len(recipients) - 1}" if len(recipients) > 1 else ""
        job.annotate(to=mask_address(recipients[0]) + more)
        if len(recipients) > self._config.max_recipients:
            raise InvalidPayload(f"to: {len(recipients)} recipients, {self._config.max_recipients} are allowed")
        content = content_of(payload, self._templates)
        job.annotate(subject=content.subject)
        mail = mail_of(payload, content, self._files(payload.attachments), self._config, key)
        results, repeatable = self._send(job, owner, mail)
        self._conclude(job, key, results, repeatable)

    def _files(self, attachments: Sequence[Attachment]) -> list[bytes]:
        """Read the attachments; their sizes are asked first, so that a huge one never gets into memory."""
        try:
            total = sum(self._storage.size(one.key) for one in attachments)
            files = [self._storage.read(one.key) for one in attachments] if total <= self._limit else []
        except FileNotFoundError:
            # Perhaps not yet: an upload may end after the message was sent.
            raise Retry("attachments: one is not in the storage") from None
        if max(total, sum(map(len, files))) > self._limit:
            raise InvalidPayload(f"attachments: {total} bytes in all, {self._limit} are allowed")
        return files

    @property
    def _limit(self) -> int:
        return self._config.max_attachment_bytes

    def _send(self, job: Job[EmailPayload], owner: str, mail: Mail) -> tuple[dict[str, Result], bool]:
        """Reserve, send to those who are still to get the mail, record.

        Returns how it stands with everybody, and whether a mail with unknown outcome is sent again.
        """
        if job.cancelled:
            raise Retry("the run lost its message before the mail was sent")
        reservation = reserve(job, owner, mail.key, job.payload.request_hash(), mail.recipients())
        results = dict(reservation.results)
        lifetime = self._transport.key_lifetime
        if lifetime is None:
            repeatable = self._config.unknown == "resend"
        else:
            # Once the other side has forgotten the key, sending again would be a second mail, whatever the policy.
            repeatable = time.time() - reservation.first_at < lifetime - _CLOCK_MARGIN
        states = ("reserved", "unknown") if repeatable else ("reserved",)
        due = [recipient for recipient, result in results.items() if result.state in states]
        news = self._transport.deliver(mail, due, reservation) if due else {}
        results |= news
        # What is held is recorded too: that gives up the reservation, which would keep the next run out.
        held = {one: result for one, result in results.items() if one in news or result.state == "unknown"}
        record(job, mail.key, held)
        return results, repeatable

    def _conclude(self, job: Job[EmailPayload], key: str, results: Mapping[str, Result], repeatable: bool) -> None:
        """Turn the results into the outcome of the run; returns where the mail is done."""
        by_state: dict[str, dict[str, Result]] = {}
        for recipient, result in results.items():
            by_state.setdefault(result.state, {})[recipient] = result
        counts = {state: len(some) for state, some in by_state.items() if state != "sent"}
        if counts:
            job.annotate(**counts)
        deferred, unknown = by_state.get("deferred", {}), by_state.get("unknown", {})
        down = [result for result in results.values() if result.down]
        if down:
            raise Unavailable(_summary({**deferred, **unknown}), delay=down[0].wait)
        hold = not repeatable or any(result.hold for result in unknown.values())
        if unknown and not deferred and hold:
            raise Reject(
                f"unknown_outcome: the mail may have been sent: {_summary(unknown)}; see whether it arrived, then call"
                f" queue_worker.mail_resolve with key {key[:100]!r} and 'sent' or 'deferred', and redrive"
            )
        if deferred or unknown:
            raise Retry(_summary({**deferred, **unknown}), delay=self._delay(job, deferred))
        if "sent" not in by_state:
            raise Reject(f"bounced: {_summary(by_state['bounced'])}")

    def _delay(self, job: Job[EmailPayload], deferred: Mapping[str, Result]) -> float | None:
        # Greylisting servers count a retry that comes too soon as none; the first delays of the policy are shorter.
        greylisted = any(result.code in _GREYLISTED for result in deferred.values())
        if greylisted and job.attempt <= 2:
            return self._config.greylist_delay_seconds
        return max((result.wait for result in deferred.values() if result.wait is not None), default=None)


def mail_transport(config: EmailConfig) -> MailTransport:
    """Return the way by which mail leaves. Raises ConfigError for settings that cannot work."""
    if config.provider == "resend":
        return ResendClient(config)
    return SmtpClient(config) if config.host else Outbox(config)


def _summary(results: Mapping[str, Result]) -> str:
    """Say once what each reply was, with masked recipients: the text ends in logs and rows."""
    by_reply: dict[str, list[str]] = {}
    for recipient, result in results.items():
        shown = mask_address(recipient)
        reply = re.sub(re.escape(recipient), lambda _: shown, result.reply, flags=re.IGNORECASE)  # noqa: B023
        by_reply.setdefault(clean_reply(reply), []).append(shown)
    parts = []
    for reply, shown_recipients in list(by_reply.items())[:5]:
        more = f" +{len(shown_recipients) - 1}" if len(shown_recipients) > 1 else ""
        parts.append(f"{shown_recipients[0]}{more}: {reply}")
    return "; ".join(parts) + (f"; and {len(by_reply) - 5} other replies" if len(by_reply) > 5 else "")
