"""Settings of the e-mail processor; `service` fills them in, nothing here reads the environment."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from queue_worker.errors import ConfigError
from queue_worker.processors.email_address import Mailbox, check_line, parse_mailbox


@dataclass(frozen=True, slots=True)
class EmailConfig:
    """How mail leaves.

    provider: smtp, or resend: by its HTTP API with `api_key` at `api_base`.
    host: mail server; empty: each mail becomes an .eml file in `outbox_dir`.
    secure: TLS from the first byte; else STARTTLS is required, see `plain_allowed`.
    user, password: for AUTH; no AUTH without a user.
    allow_plain: go on without TLS where the server does not offer it.
    ca_file: PEM file of the only authority to trust (None: those of the system).
    timeout_seconds: longest wait for the connection and for one answer of the server.
    final_seconds: longest wait for the answer to a whole message. RFC 5321 4.5.3.2.6 gives the server 10 minutes, but
        a longer wait would outlive the two minutes for which another run of the mail stands back (`mail_reserve`), and
        both would send it.
    unknown: what happens to a mail that may have been sent: `resend` it (same Message-ID) or `hold` it for a person.
    templates_dir: folder of templates that come before the shipped ones.
    max_recipients: of one mail, over to, cc and bcc. max_attachment_bytes: of one mail, in all.
    greylist_delay_seconds: delay of the first retries after 450 and 451.
    redirect_to: address that gets every mail instead of its recipients, for staging; empty: nobody but them.
    """

    provider: Literal["smtp", "resend"] = "smtp"
    api_key: str = field(default="", repr=False)
    api_base: str = "https://api.resend.com"
    host: str = ""
    port: int = 587
    secure: bool = False
    user: str = ""
    password: str = field(default="", repr=False)
    from_email: str = ""
    from_name: str = ""
    allow_plain: bool = False
    ca_file: Path | None = None
    timeout_seconds: float = 10.0
    final_seconds: float = 100.0
    outbox_dir: Path = Path(".queue-worker/outbox")
    unknown: Literal["resend", "hold"] = "resend"
    templates_dir: Path | None = None
    max_recipients: int = 50
    max_attachment_bytes: int = 10_000_000
    greylist_delay_seconds: float = 300.0
    redirect_to: str = ""

    @property
    def sender(self) -> Mailbox:
        """The one From of all mails. Raises ConfigError where SMTP_FROM_EMAIL or SMTP_FROM_NAME cannot be used."""
        nowhere = self.provider == "smtp" and not self.host
        address = self.from_email or ("queue-worker@localhost" if nowhere else "")
        try:
            mailbox = parse_mailbox(address)
        except ValueError as error:
            raise ConfigError(f"SMTP_FROM_EMAIL: {error}") from None
        try:
            return mailbox._replace(name=check_line(self.from_name).strip() or mailbox.name)
        except ValueError as error:
            raise ConfigError(f"SMTP_FROM_NAME: {error}") from None

    @property
    def redirect(self) -> Mailbox | None:
        """Who gets every mail instead of its recipients. Raises ConfigError where SMTP_REDIRECT_TO is no address."""
        if not self.redirect_to:
            return None
        try:
            return parse_mailbox(self.redirect_to)
        except ValueError as error:
            raise ConfigError(f"SMTP_REDIRECT_TO: {error}") from None

    @property
    def plain_allowed(self) -> bool:
        """Whether a server without STARTTLS may be used: on this machine, or where the user said so."""
        return self.allow_plain or _loopback(self.host)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
