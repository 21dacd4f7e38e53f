"""`queue-worker email check`: goes through every step that comes before a mail, and sends none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from queue_worker.errors import ConfigError
from queue_worker.processors.email_config import EmailConfig
from queue_worker.processors.email_connect import SmtpFailure, hang_up, open_smtp, tls_context
from queue_worker.processors.email_resend import ResendClient
from queue_worker.processors.email_templates import Templates


class CheckStep(NamedTuple):
    """One line of the check; `detail` says what was found or what is wrong."""

    step: str
    ok: bool
    detail: str


def check(config: EmailConfig) -> list[CheckStep]:
    """Check settings, templates and the way to the mail server: connect, TLS, EHLO, AUTH.

    The first failure is the last step.
    """
    steps: list[CheckStep] = []

    def note(step: str, detail: str) -> None:
        steps.append(CheckStep(step, True, detail))

    try:
        note("sender", config.sender.address)
        note("templates", ", ".join(Templates(config.templates_dir).names()))
        if config.redirect is not None:
            note("redirect", f"SMTP_REDIRECT_TO is set: every mail goes to {config.redirect.address}, to nobody else")
        if config.provider == "resend":
            return [*steps, _resend(config)]
        if not config.host:
            return [*steps, _outbox(config.outbox_dir)]
        hang_up(open_smtp(config, tls_context(config), note))
    except ConfigError as error:
        steps.append(CheckStep("settings", False, str(error)))
    except SmtpFailure as failure:
        steps.append(CheckStep(failure.step, False, failure.detail))
    else:
        if not config.user:
            note("auth", "none: SMTP_USER is not set")
    return steps


def _resend(config: EmailConfig) -> CheckStep:
    client = ResendClient(config)
    try:
        return CheckStep("resend", *client.check())
    finally:
        client.close()


def _outbox(folder: Path) -> CheckStep:
    found = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if found.is_dir() and os.access(found, os.W_OK):
        return CheckStep("outbox", True, f"SMTP_HOST is not set: mails become .eml files in {folder}")
    return CheckStep("outbox", False, f"cannot write to {found}; set QUEUE_WORKER_OUTBOX_DIR or SMTP_HOST")
