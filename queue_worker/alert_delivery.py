"""How people hear of an alert: a log line, a webhook, a mail.

Mails leave straight, not through queue `email`: that may be the one that stalls.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from queue_worker import events, safe_http
from queue_worker.builtin import email_config
from queue_worker.config import Settings
from queue_worker.errors import QueueWorkerError

if TYPE_CHECKING:
    from queue_worker.processors.email_compose import Mail
    from queue_worker.processors.email_config import EmailConfig

_MAIL_SECONDS = 20.0
"""Longest talk with the mail server about one alert; below the lease of a notice."""

Teller = Callable[["Notice"], None]


class Undelivered(Exception):
    """A channel did not take it; the text is for the log and holds no secret."""


class Notice(NamedTuple):
    """That an alert fired or cleared. `event` is `fired` or `cleared`, `queue` is empty where it is about no queue."""

    alert_id: int
    event: str
    name: str
    queue: str
    detail: str
    value: float
    fired_at: datetime
    cleared_at: datetime | None

    @property
    def text(self) -> str:
        """One line for people."""
        where = f" of queue {self.queue}" if self.queue else ""
        what = self.name.replace("_", " ")
        if self.event == "fired":
            return f"Alert: {what}{where}: {self.detail}"
        lasted = (self.cleared_at - self.fired_at).total_seconds() if self.cleared_at else 0.0
        return f"Cleared after {_span(lasted)}: {what}{where} (last seen: {self.detail})"

    @property
    def figure(self) -> float | int:
        """The value without a needless decimal point."""
        return int(self.value) if float(self.value).is_integer() else self.value

    def document(self) -> dict[str, Any]:
        """The body of a webhook; `text` is what Slack and the like show."""
        return {
            "event": f"alert.{self.event}",
            "id": str(self.alert_id),
            "name": self.name,
            "queue": self.queue or None,
            "value": self.figure,
            "detail": self.detail,
            "fired_at": self.fired_at.isoformat(),
            "cleared_at": self.cleared_at.isoformat() if self.cleared_at else None,
            "text": self.text,
        }


def channels_of(settings: Settings) -> Mapping[str, Teller]:
    """Return the ways to tell people, by name; each raises Undelivered. The log needs no setting."""
    found: dict[str, Teller] = {"log": _log}
    if settings.alert_webhook is not None:
        url, private = settings.alert_webhook.get_secret_value(), settings.alert_webhook_allow_private
        found["webhook"] = lambda notice: _post(url, private, notice)
    if settings.alert_email_to:
        found["email"] = lambda notice: _mail(settings, notice)
    return found


def _log(notice: Notice) -> None:
    fields: dict[str, Any] = {"alert": notice.name, "detail": notice.detail, "value": notice.figure}
    if notice.queue:
        fields["queue"] = notice.queue
    if notice.cleared_at is not None:
        fields["seconds"] = round((notice.cleared_at - notice.fired_at).total_seconds())
    events.emit(f"alert.{notice.event}", **fields)


def _post(url: str, allow_private: bool, notice: Notice) -> None:
    body = json.dumps(notice.document(), ensure_ascii=False).encode("utf-8", "replace")
    # A receiver that keeps it can drop the repeat that a crash makes.
    key = {"Idempotency-Key": f"{notice.alert_id}-{notice.event}"}
    try:
        safe_http.post(url, body, allow_private=allow_private, headers=key)
    except (safe_http.Refused, safe_http.Failed) as error:
        raise Undelivered(f"QUEUE_WORKER_ALERT_WEBHOOK: {error}") from None


def _mail(settings: Settings, notice: Notice) -> None:
    # Loaded where mails are wanted only.
    from queue_worker.processors.email import mail_transport
    from queue_worker.processors.email_ledger import Reservation

    config = email_config(settings)
    try:
        mail = _mail_of(config, settings.alert_email_to, notice)
        transport = mail_transport(config)
        try:
            reservation = Reservation({}, int(notice.fired_at.timestamp()), time.monotonic() + _MAIL_SECONDS)
            results = transport.deliver(mail, mail.recipients(), reservation)
        finally:
            transport.close()
    except (OSError, ValueError, QueueWorkerError) as error:
        raise Undelivered(f"QUEUE_WORKER_ALERT_EMAIL_TO: {error}") from None
    missed = [result for result in results.values() if result.state != "sent"]
    if missed:
        trouble = Undelivered(f"QUEUE_WORKER_ALERT_EMAIL_TO: {len(missed)} of {len(results)}: {missed[0].reply}")
        if len(missed) == len(results):
            raise trouble
        # Another try would reach the others twice.
        events.emit("alert.undelivered", alert=notice.name, channel="email", error=str(trouble))


def _mail_of(config: EmailConfig, to: Sequence[str], notice: Notice) -> Mail:
    from queue_worker.processors.email_address import parse_mailbox
    from queue_worker.processors.email_compose import Mail, redirected
    from queue_worker.processors.email_templates import Content

    facts = [f"{name}: {value}" for name, value in notice.document().items() if value is not None and name != "text"]
    mail = Mail(
        # The Message-ID comes from it: a repeat has the same one.
        key=f"queue-worker alert {notice.alert_id} {notice.event} {notice.fired_at.timestamp()}",
        sender=config.sender,
        to=[parse_mailbox(address) for address in to],
        cc=[],
        bcc=[],
        reply_to=[],
        content=Content(" ".join(notice.text.split())[:200], "\n".join([notice.text, "", *facts, ""]), None),
        headers={},
        attachments=[],
    )
    return mail if config.redirect is None else redirected(mail, config.redirect)


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
