"""The processor of queue `email`: one mail per message, sent once per key and recipient.

The ledger is written before and after the talk with the mail server, so that a rerun knows who has got the mail. What
remains is the answer that got lost: by then the server may have taken the mail or not, and the policy decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from queue_worker.errors import InvalidPayload, Reject, Retry
from queue_worker.log import mask_address
from queue_worker.processor import Job, Processor
from queue_worker.processors.email_check import CheckStep, check
from queue_worker.processors.email_compose import Letter, compose, content_of
from queue_worker.processors.email_config import EmailConfig
from queue_worker.processors.email_ledger import Result, clean_reply, owner_of, record, reserve
from queue_worker.processors.email_outbox import write_eml
from queue_worker.processors.email_payload import Attachment, EmailPayload
from queue_worker.processors.email_smtp import SmtpClient
from queue_worker.processors.email_templates import Templates

__all__ = ["Attachment", "CheckStep", "EmailConfig", "EmailPayload", "Storage", "check", "make_processor"]

_GREYLISTED = (450, 451)


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
        self._sender = config.sender
        self._templates = Templates(config.templates_dir)
        self._smtp = SmtpClient(config) if config.host else None

    def close(self) -> None:
        """Close the connections to the mail server."""
        if self._smtp is not None:
            self._smtp.close()

    def __call__(self, job: Job[EmailPayload]) -> None:
        """Send the mail to everybody who has not got it. Raises InvalidPayload, Reject and Retry."""
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
        letter = compose(payload, content, self._files(payload.attachments), self._config, key)
        results = self._send(job, owner, key, letter, recipients)
        self._conclude(job, key, results)

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

    def _send(
        self, job: Job[EmailPayload], owner: str, key: str, letter: Letter, recipients: Sequence[str]
    ) -> dict[str, Result]:
        """Reserve, send to those who are still to get the mail, record; returns how it stands with everybody."""
        if job.cancelled:
            raise Retry("the run lost its message before the mail was sent")
        reservation = reserve(job, owner, key, job.payload.request_hash(), recipients)
        results = dict(reservation.results)
        # Writing the same file again harms nobody, whatever the policy.
        states = ("reserved", "unknown") if self._config.unknown == "resend" or self._smtp is None else ("reserved",)
        due = [recipient for recipient, result in results.items() if result.state in states]
        if not due:
            news = {}
        elif self._smtp is None:
            path = write_eml(self._config.outbox_dir, letter.data, key, reservation.first_at)
            news = dict.fromkeys(due, Result("sent", f"written to {path.name}"))
        else:
            news = self._smtp.deliver(letter, due, reservation.deadline)
        results |= news
        # What is held is recorded too: that gives up the reservation, which would keep the next run out.
        record(job, key, {one: result for one, result in results.items() if one in news or result.state == "unknown"})
        return results

    def _conclude(self, job: Job[EmailPayload], key: str, results: Mapping[str, Result]) -> None:
        """Turn the results into the outcome of the run; returns where the mail is done."""
        by_state: dict[str, dict[str, Result]] = {}
        for recipient, result in results.items():
            by_state.setdefault(result.state, {})[recipient] = result
        counts = {state: len(some) for state, some in by_state.items() if state != "sent"}
        if counts:
            job.annotate(**counts)
        deferred, unknown = by_state.get("deferred", {}), by_state.get("unknown", {})
        if unknown and not deferred and self._config.unknown == "hold":
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
        return self._config.greylist_delay_seconds if greylisted and job.attempt <= 2 else None


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
