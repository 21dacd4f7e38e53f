"""Opens a connection to the mail server: TCP, verified TLS, EHLO, AUTH; or says which of these failed and why."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from smtplib import SMTP, SMTP_SSL, SMTPAuthenticationError, SMTPException, SMTPNotSupportedError, SMTPResponseException

from queue_worker.errors import ConfigError
from queue_worker.processors.email_config import EmailConfig

Report = Callable[[str, str], None]


class SmtpFailure(Exception):
    """No mail can be sent now. `step` is connect, tls, ehlo or auth; `code` the server's reply code, 0 without one."""

    def __init__(self, step: str, detail: str, code: int = 0) -> None:
        super().__init__(f"{step}: {detail}")
        self.step = step
        self.detail = detail
        self.code = code


def tls_context(config: EmailConfig) -> ssl.SSLContext:
    """Return the context that verifies the server's certificate and name. Raises ConfigError for a bad `ca_file`."""
    try:
        return ssl.create_default_context(cafile=config.ca_file)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "it is not a PEM file of certificates"
        raise ConfigError(f"QUEUE_WORKER_SMTP_CA_FILE: {str(config.ca_file)!r}: {reason}") from None


def reply_text(reply: bytes | str) -> str:
    """Return what a server said as text."""
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else reply


def open_smtp(config: EmailConfig, context: ssl.SSLContext, report: Report = lambda step, detail: None) -> SMTP:
    """Return a connection that is ready for MAIL; `report(step, detail)` is called after each step that went well.

    Without `secure`, STARTTLS is required unless `plain_allowed`; a server that hides it never sees AUTH or a mail.
    Raises SmtpFailure.
    """
    smtp = _dial(config, context, report)
    try:
        if smtp.sock is not None:
            # Nagle would hold the final dot back until the mail before it is acknowledged.
            smtp.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _greet(smtp)
        if not config.secure:
            _start_tls(smtp, config, context, report)
        report("ehlo", f"extensions: {', '.join(sorted(smtp.esmtp_features)) or 'none'}")
        if config.user:
            _log_in(smtp, config)
            report("auth", f"logged in as {config.user}")
        return smtp
    except SmtpFailure:
        hang_up(smtp, polite=False)
        raise
    except OSError as error:  # SMTPException is one too
        hang_up(smtp, polite=False)
        raise SmtpFailure("ehlo", explain(error), code_of(error)) from None


def hang_up(smtp: SMTP, *, polite: bool = True) -> None:
    """Close a connection; `polite`: with QUIT, if the server still listens."""
    with suppress(OSError, ValueError):
        if polite:
            smtp.quit()
    with suppress(OSError):
        smtp.close()


def explain(error: OSError | UnicodeError) -> str:
    """Return an error of the socket, of TLS or of smtplib as one line."""
    if isinstance(error, UnicodeError):
        return "that is no host name"
    if isinstance(error, SMTPResponseException):
        return f"{error.smtp_code} {reply_text(error.smtp_error)}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not valid: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS failed"
    if isinstance(error, SMTPException):
        return str(error)
    return error.strerror or str(error) or type(error).__name__


def code_of(error: Exception) -> int:
    """Return the server's reply code in an error, 0 without one."""
    return error.smtp_code if isinstance(error, SMTPResponseException) else 0


@lru_cache(maxsize=1)
def _our_name() -> str:
    # smtplib would ask the DNS for our own name at every connection.
    name = socket.getfqdn()
    return name if "." in name and name.isascii() else "[127.0.0.1]"


def _dial(config: EmailConfig, context: ssl.SSLContext, report: Report) -> SMTP:
    where = f"{config.host}:{config.port}"
    host = config.host.strip("[]")  # an IPv6 address as URLs have it
    try:
        smtp = (
            SMTP_SSL(host, config.port, _our_name(), timeout=config.timeout_seconds, context=context)
            if config.secure
            else SMTP(host, config.port, _our_name(), timeout=config.timeout_seconds)
        )
    except ssl.SSLError as error:
        raise _tls_failure(error, where) from None
    except (OSError, UnicodeError) as error:
        raise SmtpFailure("connect", f"{where}: {explain(error)}", code_of(error)) from None
    report("connect", where)
    if config.secure:
        report("tls", _tls_detail(smtp))
    return smtp


def _greet(smtp: SMTP) -> None:
    # No fall-back to HELO: it knows neither STARTTLS nor AUTH, and a server that is shutting down refuses EHLO too.
    code, reply = smtp.ehlo()
    if code != 250:
        raise SmtpFailure("ehlo", f"{code} {reply_text(reply)}", max(code, 0))


def _start_tls(smtp: SMTP, config: EmailConfig, context: ssl.SSLContext, report: Report) -> None:
    where = f"{config.host}:{config.port}"
    if not smtp.has_extn("starttls"):
        if not config.plain_allowed:
            raise SmtpFailure(
                "tls",
                f"{where} does not offer STARTTLS, and mail is not sent in clear; use SMTP_SECURE=true where the port"
                " has TLS from the first byte",
            )
        report("tls", "none: the server offers no STARTTLS, and plain SMTP is allowed here")
        return
    try:
        smtp.starttls(context=context)
    except ssl.SSLError as error:
        raise _tls_failure(error, where) from None
    except OSError as error:
        raise SmtpFailure("tls", f"{where}: STARTTLS: {explain(error)}", code_of(error)) from None
    report("tls", _tls_detail(smtp))
    _greet(smtp)


def _tls_failure(error: ssl.SSLError, where: str) -> SmtpFailure:
    detail = f"{where}: {explain(error)}"
    if isinstance(error, ssl.SSLCertVerificationError):
        detail += "; if the authority is your own, name its PEM file in QUEUE_WORKER_SMTP_CA_FILE"
    elif error.reason == "WRONG_VERSION_NUMBER":
        detail += "; the port does not begin with TLS, use SMTP_SECURE=false (STARTTLS)"
    return SmtpFailure("tls", detail)


def _tls_detail(smtp: SMTP) -> str:
    sock = smtp.sock
    return f"{sock.version()}, certificate verified" if isinstance(sock, ssl.SSLSocket) else "none"


def _log_in(smtp: SMTP, config: EmailConfig) -> None:
    try:
        smtp.login(config.user, config.password)
    except SMTPAuthenticationError as error:
        detail = f"the login was refused: {explain(error)}; check SMTP_USER and SMTP_PASSWORD"
        raise SmtpFailure("auth", detail, error.smtp_code) from None
    except SMTPNotSupportedError:
        raise SmtpFailure("auth", "SMTP_USER is set, but the server offers no AUTH on this connection") from None
    except UnicodeError:
        # The error itself holds the password.
        raise SmtpFailure("auth", "SMTP_USER and SMTP_PASSWORD must be ASCII") from None
    except OSError as error:
        raise SmtpFailure("auth", explain(error), code_of(error)) from None
