"""Builds a mail: its MIME structure by EmailMessage, its headers in wire form."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from itertools import chain
from typing import NamedTuple

from queue_worker.errors import InvalidPayload
from queue_worker.processors.email_address import Mailbox, check_line
from queue_worker.processors.email_config import EmailConfig
from queue_worker.processors.email_payload import Attachment, EmailPayload
from queue_worker.processors.email_templates import Content, Templates
from queue_worker.processors.email_wire import POLICY, POLICY_UTF8, encode_mailbox, encode_text


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


def compose(payload: EmailPayload, content: Content, files: Sequence[bytes], config: EmailConfig, key: str) -> Letter:
    """Build the mail. `files` are the contents of `payload.attachments`, in order; `key` decides the Message-ID."""
    sender = config.sender
    shown = {field: payload.mailboxes(field) for field in ("to", "cc", "reply_to")}
    everybody = chain([sender], payload.mailboxes("bcc"), *shown.values())
    utf8 = not all(mailbox.address.isascii() for mailbox in everybody)
    message = EmailMessage(policy=POLICY_UTF8 if utf8 else POLICY)
    _add_headers(message, sender, shown, content.subject, key)
    for name, value in payload.headers.items():
        message[name] = value
    _add_content(message, content)
    for attachment, file in zip(payload.attachments, files, strict=True):
        _attach(message, attachment, file)
    return Letter(sender.address, message.as_bytes(), utf8)


def message_id(key: str, domain: str) -> str:
    """Return the Message-ID for `key`: the same for every attempt, so that people and filters can see a repeat."""
    return f"<{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}@{domain}>"


def _add_headers(
    message: EmailMessage, sender: Mailbox, shown: dict[str, list[Mailbox]], subject: str, key: str
) -> None:
    message["From"] = encode_mailbox(sender)
    for field, header in (("to", "To"), ("cc", "Cc"), ("reply_to", "Reply-To")):
        if shown[field]:
            message[header] = ", ".join(encode_mailbox(mailbox) for mailbox in shown[field])
    # Bcc is for the envelope alone. Without To and Cc some servers would add a header that shows the recipients.
    if not shown["to"] and not shown["cc"]:
        message["To"] = "undisclosed-recipients:;"
    message["Subject"] = encode_text(subject)
    message["Message-ID"] = message_id(key, sender.domain)
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
