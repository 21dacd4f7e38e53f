"""Mail by the HTTP API of Resend: one request for all recipients of a mail, with an idempotency key.

| answer                                    | result                                                                |
|-------------------------------------------|-----------------------------------------------------------------------|
| 2xx                                       | sent                                                                  |
| 400, 413, 422                             | bounced: the mail itself was refused                                  |
| 429                                       | deferred; the queue pauses for its Retry-After                        |
| 409 concurrent_idempotent_requests        | unknown; the same request is under way, ask again                     |
| 409 otherwise                             | unknown, for a person: the key was used for a mail with other content |
| no connection                             | deferred: nothing was sent                                            |
| connection lost, timeout, 408, 5xx        | unknown; the same key again is safe for 24 hours                      |
| 503                                       | the same; the queue pauses                                            |
| any other (401, 403, 404 ...)             | deferred: a setting to repair, no fault of the mail                   |

Sources: https://resend.com/docs/api-reference/emails/send-email, /api-reference/errors and
/dashboard/emails/idempotency-keys.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from queue_worker.errors import ConfigError
from queue_worker.log import redact
from queue_worker.processors.email_address import Mailbox
from queue_worker.processors.email_compose import Mail
from queue_worker.processors.email_config import EmailConfig
from queue_worker.processors.email_connect import tls_context
from queue_worker.processors.email_ledger import Reservation, Result, clean_reply
from queue_worker.processors.http_answers import retry_after

_REFUSED = (400, 413, 422)
_PLAIN_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 _-'&+/!")


class ResendClient:
    """Sends mails by HTTPS; see `email_transport.MailTransport`.

    Raises ConfigError where the key is missing, or would travel in clear to another machine.
    """

    key_lifetime = 86_400.0  # "idempotency keys expire after 24 hours"

    def __init__(self, config: EmailConfig) -> None:
        if not config.api_key or not config.api_key.isascii() or not config.api_key.isprintable():
            raise ConfigError(
                "QUEUE_WORKER_EMAIL_PROVIDER=resend needs QUEUE_WORKER_RESEND_API_KEY (or RESEND_API_KEY)"
            )
        base = urlsplit(config.api_base)
        if base.scheme != "https" and not _loopback(base.hostname or ""):
            raise ConfigError(
                "QUEUE_WORKER_RESEND_API_BASE must begin with https://: the API key must not travel in clear"
            )
        self._key = config.api_key
        self._http = httpx.Client(
            base_url=config.api_base,
            headers={"Authorization": f"Bearer {config.api_key}", "User-Agent": "queue-worker"},
            timeout=config.timeout_seconds,
            verify=tls_context(config),
            follow_redirects=False,
        )

    def __repr__(self) -> str:
        return "ResendClient()"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def deliver(self, mail: Mail, due: Sequence[str], reservation: Reservation) -> dict[str, Result]:
        """Send one mail; all of its recipients share the result. See MailTransport."""
        body = body_of(mail, due)
        if not body["to"]:
            return dict.fromkeys(due, Result("bounced", "the provider takes no mail without a recipient in `to`"))
        request = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key(mail.key, due)}
        try:
            answer = self._http.post("/emails", content=json.dumps(body, ensure_ascii=False).encode(), headers=request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol) as error:
            return dict.fromkeys(
                due, Result("deferred", self._clean(f"no connection: {error or type(error).__name__}"))
            )
        except httpx.HTTPError as error:
            return dict.fromkeys(due, Result("unknown", f"no answer: {type(error).__name__}"))
        return dict.fromkeys(due, self._verdict(answer))

    def check(self) -> tuple[bool, str]:
        """Ask for something that changes nothing; returns whether the key is accepted, and what was found."""
        try:
            answer = self._http.get("/domains")
        except httpx.HTTPError as error:
            return False, self._clean(f"{self._http.base_url}: {error or type(error).__name__}")
        name, text = _error(answer)
        if answer.is_success:
            return True, "the API key is accepted"
        if name == "restricted_api_key":
            return True, "the API key is accepted, for sending only"
        return False, self._clean(f"{answer.status_code} {text}; check QUEUE_WORKER_RESEND_API_KEY")

    def _verdict(self, answer: httpx.Response) -> Result:
        status = answer.status_code
        if answer.is_success:
            return Result("sent", self._clean(f"accepted as {_id(answer)}"), status)
        name, text = _error(answer)
        reply = self._clean(f"{status} {text}")
        wait = retry_after(answer.headers.get("Retry-After"))
        if status in _REFUSED:
            return Result("bounced", reply, status)
        if status == 429:
            return Result("deferred", reply, status, wait, down=True)
        if status == 409:
            return Result("unknown", reply, status, wait, hold=name != "concurrent_idempotent_requests")
        if status == 408 or status >= 500:
            return Result("unknown", reply, status, wait, down=status == 503)
        return Result("deferred", f"{reply}; check QUEUE_WORKER_RESEND_API_KEY and SMTP_FROM_EMAIL", status, wait)

    def _clean(self, text: str) -> str:
        return clean_reply(redact(text).replace(self._key, "***"))


def body_of(mail: Mail, due: Sequence[str]) -> dict[str, Any]:
    """Return the JSON of a request that sends `mail` to those in `due`; the same for every attempt."""
    wanted = {address.casefold() for address in due}

    def shown(mailboxes: Sequence[Mailbox]) -> list[str]:
        # Taken out once used: who stands in two fields gets the mail once.
        taken = []
        for mailbox in mailboxes:
            if mailbox.address.casefold() in wanted:
                wanted.discard(mailbox.address.casefold())
                taken.append(_shown(mailbox))
        return taken

    body: dict[str, Any] = {"from": _shown(mail.sender), "subject": mail.content.subject, "to": shown(mail.to)}
    optional = {
        "cc": shown(mail.cc),
        "bcc": shown(mail.bcc),
        "reply_to": [_shown(mailbox) for mailbox in mail.reply_to],
        "text": mail.content.text,
        "html": mail.content.html,
        "headers": dict(mail.headers),
        "attachments": [
            {
                "filename": one.shown_name,
                "content_type": one.mime_type,
                "content": base64.b64encode(file).decode("ascii"),
            }
            for one, file in mail.attachments
        ],
    }
    return body | {name: value for name, value in optional.items() if value}


def idempotency_key(key: str, due: Sequence[str]) -> str:
    """Return the key of a request: the mail's own, with those it goes to, because they are part of the request."""
    parts = json.dumps([key, sorted(due)], ensure_ascii=False)
    return "mail_" + hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()


def _shown(mailbox: Mailbox) -> str:
    """Return a mailbox as the API takes it: the name as it is, quoted where a sign in it has a meaning."""
    if not mailbox.name:
        return mailbox.address
    if all(sign in _PLAIN_NAME or not sign.isascii() for sign in mailbox.name):
        return f"{mailbox.name} <{mailbox.address}>"
    quoted = mailbox.name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}" <{mailbox.address}>'


def _id(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["id"])[:100]
    except (ValueError, KeyError, TypeError):
        return "(no id)"


def _error(answer: httpx.Response) -> tuple[str, str]:
    """Return an error's name and text."""
    try:
        body = answer.json()
        name, text = str(body.get("name") or ""), str(body.get("message") or "")
    except (ValueError, AttributeError):
        return "", answer.reason_phrase
    return name, f"{name}: {text}" if name else text or answer.reason_phrase


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
