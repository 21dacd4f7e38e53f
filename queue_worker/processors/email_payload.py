"""The payload of a message in queue `email`. Error texts name fields and never repeat their values."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from queue_worker.processors.email_address import Mailbox, check_line, parse_mailbox
from queue_worker.processors.email_wire import HEADERS_AS_GIVEN

ATTACHMENT_TYPES = {
    ".csv": "text/csv",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".gif": "image/gif",
    ".gz": "application/gzip",
    ".html": "text/html",
    ".ics": "text/calendar",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".md": "text/markdown",
    ".ods": "application/vnd.oasis.opendocument.spreadsheet",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".txt": "text/plain",
    ".webp": "image/webp",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".xml": "application/xml",
    ".zip": "application/zip",
}
"""What may be attached: the ending of the file name decides."""

_HEADERS = {name.lower(): name for name in HEADERS_AS_GIVEN}
# Longest line of a mail is 998 octets (RFC 5322 2.1.1); a value without blanks cannot be folded.
_MAX_HEADER = 900


def _refuse(text: str) -> PydanticCustomError:
    # Unlike a ValueError it has no "Value error, " in front; braces would be read as placeholders.
    return PydanticCustomError("email", text.replace("{", "(").replace("}", ")"))


def _clean(check: Callable[[str], object]) -> Callable[[str], str]:
    """Make a validator of a function that raises ValueError; the text itself is kept."""

    def validate(text: str) -> str:
        try:
            check(text)
        except ValueError as error:
            raise _refuse(str(error)) from None
        return text

    return validate


def _one_or_many(value: Any) -> Any:
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _no_nul(text: str) -> str:
    if "\x00" in text:
        raise _refuse("must not hold NUL")
    return text


def _storage_key(key: str) -> str:
    # The same rule as storage.check_key, here so that a bad key is an invalid payload and not a failed run.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", key) or any(not part.strip(".") for part in key.split("/")):
        raise ValueError('must be a storage key such as reports/2030-01/sales.pdf: no URL, no leading "/", no ".."')
    return key


def _file_name(name: str) -> str:
    check_line(name)
    if "/" in name or "\\" in name or PurePosixPath(name).suffix.lower() not in ATTACHMENT_TYPES:
        raise ValueError(f"must be a file name without folders that ends in one of {' '.join(ATTACHMENT_TYPES)}")
    return name


def _header_values(headers: dict[str, str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for name, value in headers.items():
        known = _HEADERS.get(name.lower())
        if known is None or known in named:
            raise _refuse(f"only these headers can be set, each once: {', '.join(HEADERS_AS_GIVEN)}")
        if not re.fullmatch(rf"[\x21-\x7e](?:[\x20-\x7e]{{0,{_MAX_HEADER - 2}}}[\x21-\x7e])?", value):
            raise _refuse(f"{known} must be one line of printable ASCII, {_MAX_HEADER} characters at most")
        named[known] = value
    return named


def _https_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme == "https" and parts.hostname and parts.username is None and parts.port != 0
    except ValueError:
        usable = False
    # Printable ASCII without what ends a URL in a header.
    if not usable or not re.fullmatch(r"[!-~]+", url) or re.search(r'[<>"\\]', url):
        raise ValueError("must be a URL that begins with https://, in printable ASCII without spaces")


def _bare_address(text: str) -> None:
    mailbox = parse_mailbox(text)
    if mailbox.name or mailbox.address.casefold() != text.casefold() or not text.isascii():
        raise ValueError("must be an address alone, in ASCII, such as unsubscribe@example.com")


Line = Annotated[str, AfterValidator(_clean(check_line))]
Address = Annotated[str, Field(max_length=600), AfterValidator(_clean(parse_mailbox))]
Addresses = Annotated[list[Address], BeforeValidator(_one_or_many)]
Text = Annotated[str, AfterValidator(_no_nul)]


class Attachment(BaseModel):
    """A stored object to attach.

    key: its storage key. filename: what the recipient sees (default: the key's last part); its ending says the type,
    see ATTACHMENT_TYPES. content_type: one of those types, to override that.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    key: Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_clean(_storage_key))]
    filename: Annotated[str, Field(max_length=255), AfterValidator(_clean(_file_name))] | None = None
    content_type: str | None = None

    @model_validator(mode="after")
    def _typed(self) -> Attachment:
        try:
            _file_name(self.shown_name)
        except ValueError as error:
            raise _refuse(f"filename (or the end of key) {error}") from None
        if self.content_type is not None and self.content_type.lower() not in ATTACHMENT_TYPES.values():
            raise _refuse("content_type is not one of those that may be attached; leave it out")
        return self

    @property
    def shown_name(self) -> str:
        """The file name for the recipient."""
        return self.filename or self.key.rpartition("/")[2]

    @property
    def mime_type(self) -> str:
        """The MIME type, in lower case."""
        return (self.content_type or ATTACHMENT_TYPES[PurePosixPath(self.shown_name).suffix.lower()]).lower()


class EmailPayload(BaseModel):
    """One mail.

    to, cc, bcc, reply_to: an address or a list of addresses, each `ann@example.com` or `Ann <ann@example.com>`.
    subject, text (also `body`), html: the mail itself; or `template` with `context`, where `subject` beats the
    template's own. attachments: stored objects. headers: see HEADERS_AS_GIVEN. unsubscribe_url (https, one-click by
    RFC 8058) and unsubscribe_mailto (an address): where the recipient gets off the list. key: names this mail once
    and for all (default: the job's key); it is sent once per key and recipient. The sender is a setting, not part of
    the payload.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    to: Addresses = []
    cc: Addresses = []
    bcc: Addresses = []
    reply_to: Addresses = []
    subject: Annotated[Line, Field(max_length=998)] | None = None
    text: Text | None = Field(None, validation_alias=AliasChoices("text", "body"))
    html: Text | None = None
    template: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")] | None = None
    context: dict[str, Any] | None = None
    attachments: Annotated[list[Attachment], Field(max_length=20)] = []
    headers: Annotated[dict[str, str], AfterValidator(_header_values)] = {}
    unsubscribe_url: Annotated[str, Field(max_length=_MAX_HEADER), AfterValidator(_clean(_https_url))] | None = None
    unsubscribe_mailto: Annotated[str, Field(max_length=254), AfterValidator(_clean(_bare_address))] | None = None
    key: Annotated[Line, Field(min_length=1, max_length=500)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _explain(cls, data: Any) -> Any:
        if isinstance(data, dict):
            if "from" in data:
                raise _refuse("from: the sender is fixed by SMTP_FROM_EMAIL; use reply_to to direct answers elsewhere")
            if "text" in data and "body" in data:
                raise _refuse("body is another name of text: give one of them")
        return data

    @model_validator(mode="after")
    def _whole(self) -> EmailPayload:
        if not (self.to or self.cc or self.bcc):
            raise _refuse("to: at least one recipient is needed (in to, cc or bcc)")
        if self.unsubscribe_headers() and any(name.startswith("List-Unsubscribe") for name in self.headers):
            raise _refuse("headers: give List-Unsubscribe there, or unsubscribe_url and unsubscribe_mailto, not both")
        if self.unsubscribe_url is not None and len(self.recipients()) > 1:
            raise _refuse("unsubscribe_url: names one recipient (RFC 8058); send one mail for each recipient")
        if self.template is not None:
            if self.text is not None or self.html is not None:
                raise _refuse("template: give a template, or text and html, not both")
            return self
        if self.context is not None:
            raise _refuse("context: is for a template, and none is named")
        if self.text is None and self.html is None:
            raise _refuse("text: a mail needs text, html or a template")
        if not (self.subject or "").strip():
            raise _refuse("subject: is missing")
        return self

    def request_hash(self) -> str:
        """A hash of all that decides what is sent to whom, to notice one key used for two mails."""
        # Only what is set: a field that a later version adds must not change the hash of a mail that is in retry.
        content = json.dumps(self.model_dump(mode="json", exclude={"key"}, exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def recipients(self) -> list[str]:
        """Every address to deliver to, each once, in the order given."""
        # Case in local parts tells mailboxes apart on paper only; two mails for one person are the real risk.
        unique: dict[str, str] = {}
        for mailbox in map(parse_mailbox, [*self.to, *self.cc, *self.bcc]):
            unique.setdefault(mailbox.address.casefold(), mailbox.address)
        return list(unique.values())

    def unsubscribe_headers(self) -> dict[str, str]:
        """The headers of RFC 2369 and, for a URL, of one-click unsubscription (RFC 8058)."""
        places = [f"<{self.unsubscribe_url}>"] if self.unsubscribe_url else []
        if self.unsubscribe_mailto:
            places.append(f"<mailto:{quote(self.unsubscribe_mailto, safe='@')}>")
        headers = {"List-Unsubscribe": ", ".join(places)} if places else {}
        return headers | ({"List-Unsubscribe-Post": "List-Unsubscribe=One-Click"} if self.unsubscribe_url else {})

    def mailboxes(self, field: str) -> list[Mailbox]:
        """The parsed addresses of one of to, cc, bcc and reply_to."""
        return [parse_mailbox(text) for text in getattr(self, field)]
