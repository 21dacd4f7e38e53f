"""Puts a mail together, and builds its form for SMTP: MIME by EmailMessage, headers in wire form."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import NamedTuple

from queue_worker.errors import InvalidPayload
from queue_worker.processors.email_address import Mailbox, check_line
from queue_worker.processors.email_config import EmailConfig
from queue_worker.processors.email_payload import Attachment, EmailPayload
from queue_worker.processors.email_templates import Content, Templates
from queue_worker.processors.email_wire import ORIGINAL, POLICY, POLICY_UTF8, encode_mailbox, encode_text


class Mail(NamedTuple):
    """A mail before it has the form of a transport. `headers` are encoded; `key` names it once and for all."""

    key: str
    sender: Mailbox
    to: list[Mailbox]
    cc: list[Mailbox]
    bcc: list[Mailbox]
    reply_to: list[Mailbox]
    content: Content
    headers: Mapping[str, str]
    attachments: list[tuple[Attachment, bytes]]

    def recipients(self) -> list[str]:
        """Every address to deliver to, each once, in the order given."""
        # Case in local parts tells mailboxes apart on paper only; two mails for one person are the real risk.
        unique: dict[str, str] = {}
        for mailbox in (*self.to, *self.cc, *self.bcc):
            unique.setdefault(mailbox.address.casefold(), mailbox.address)
        return list(unique.values())


class Letter(NamedTuple):
    """A composed mail. `data`: header and body with CRLF line ends; `utf8`: whether it needs SMTPUTF8 (RFC 6531)."""

    sender: str
    data: bytes
    utf8: bool


def content_of(payload: EmailPayload, templates: Templates) -> Content:
    """Return what the mail says, rendered where the payload names a template. Raises InvalidPayload."""
    if payload.template is None:
        return Content((payload.subject or "").strip(), payload.text, payload.html)
    content = templates.render(payload.template, payload.context or {})
    content = content._replace(subject=(payload.subject or content.subject).strip())
    if not content.subject:
        raise InvalidPayload(f"subject: is missing, and template {payload.template!r} has no subject block")
    if len(content.subject) > 998:
        raise InvalidPayload("context: the subject of the mail would have more than 998 characters")
    try:
        check_line(content.subject)
    except ValueError as error:
        raise InvalidPayload(f"context: a value in the subject {error}") from None
    if "\x00" in f"{content.text}{content.html}":
        raise InvalidPayload("context: must not hold NUL")
    return content


def mail_of(payload: EmailPayload, content: Content, files: Sequence[bytes], config: EmailConfig, key: str) -> Mail:
    """Put a mail together. `files` are the contents of `payload.attachments`, in order; `key` names the mail."""
    mail = Mail(
        key=key,
        sender=config.sender,
        to=payload.mailboxes("to"),
        cc=payload.mailboxes("cc"),
        bcc=payload.mailboxes("bcc"),
        reply_to=payload.mailboxes("reply_to"),
        content=content,
        headers={**payload.headers, **payload.unsubscribe_headers()},
        attachments=list(zip(payload.attachments, files, strict=True)),
    )
    return mail if config.redirect is None else redirected(mail, config.redirect)


def redirected(mail: Mail, to: Mailbox) -> Mail:
    """Return the mail for `to` alone; its headers say for whom it was.

    Reply-To goes too: an answer from staging must not reach a customer.
    """
    meant = {field: getattr(mail, field) for field in ORIGINAL}
    headers = {
        ORIGINAL[field]: ", ".join(encode_mailbox(mailbox) for mailbox in mailboxes)
        for field, mailboxes in meant.items()
        if mailboxes
    }
    return mail._replace(to=[to], cc=[], bcc=[], reply_to=[], headers={**mail.headers, **headers})


def compose(mail: Mail) -> Letter:
    """Build the form of a mail for SMTP and .eml files; its key decides the Message-ID."""
    everybody = [mail.sender, *mail.to, *mail.cc, *mail.bcc, *mail.reply_to]
    utf8 = not all(mailbox.address.isascii() for mailbox in everybody)
    message = EmailMessage(policy=POLICY_UTF8 if utf8 else POLICY)
    _add_headers(message, mail)
    for name, value in mail.headers.items():
        message[name] = value
    _add_content(message, mail.content)
    for attachment, file in mail.attachments:
        _attach(message, attachment, file)
    return Letter(mail.sender.address, message.as_bytes(), utf8)


def message_id(key: str, domain: str) -> str:
    """Return the Message-ID for `key`: the same for every attempt, so that people and filters can see a repeat."""
    return f"<{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}@{domain}>"


def _add_headers(message: EmailMessage, mail: Mail) -> None:
    message["From"] = encode_mailbox(mail.sender)
    for mailboxes, header in ((mail.to, "To"), (mail.cc, "Cc"), (mail.reply_to, "Reply-To")):
        if mailboxes:
            message[header] = ", ".join(encode_mailbox(mailbox) for mailbox in mailboxes)
    # Bcc is for the envelope alone. Without To and Cc some servers would add a header that shows the recipients.
    if not mail.to and not mail.cc:
        message["To"] = "undisclosed-recipients:;"
    message["Subject"] = encode_text(mail.content.subject)
    message["Message-ID"] = message_id(mail.key, mail.sender.domain)
    message["Date"] = format_datetime(datetime.now(UTC))


def _add_content(message: EmailMessage, content: Content) -> None:
    if content.text is not None:
        message.set_content(content.text)
        if content.html is not None:
            message.add_alternative(content.html, subtype="html")
    else:
        message.set_content(content.html or "", subtype="html")


def _attach(message: EmailMessage, attachment: Attachment, file: bytes) -> None:
    main, _, sub = attachment.mime_type.partition("/")
    # Our own reports are UTF-8; without a charset mail programs guess.
    params = {"charset": "utf-8"} if main == "text" else None
    message.add_attachment(file, maintype=main, subtype=sub, filename=attachment.shown_name, params=params)
