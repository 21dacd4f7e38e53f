"""SMTP_REDIRECT_TO: in staging every mail goes to one address; and the headers by which recipients leave a list."""

from __future__ import annotations

from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest
from email_context import Context, Mailer, run
from resend_server import KEY, ResendServer
from smtp_server import SmtpServer

from queue_worker.config import load_settings
from queue_worker.errors import ConfigError
from queue_worker.processors.email import EmailConfig, check
from tests.blackbox.program import Program

pytest_plugins = ["email_fixtures"]

MAIL: dict[str, Any] = {
    "to": ["Änn <ann@example.com>", "bob@example.com"],
    "cc": "carl@example.com",
    "bcc": "dora@example.com",
    "reply_to": "customer@example.com",
    "subject": "Hello",
    "text": "Hi",
    "key": "k",
}


def test_a_redirected_mail_reaches_one_address_and_says_for_whom_it_was(
    context: Context, smtp: SmtpServer, mailer: Mailer
) -> None:
    assert run(mailer(redirect_to="dev@example.net"), context, MAIL).kind == "done"
    (received,) = smtp.received
    assert received.recipients == ("dev@example.net",)
    message = received.message
    assert (message["To"], message["Cc"], message["Bcc"], message["Reply-To"]) == ("dev@example.net", None, None, None)
    assert message["X-Original-To"] == "Änn <ann@example.com>, bob@example.com"
    assert message["X-Original-Cc"] == "carl@example.com"
    assert message["X-Original-Bcc"] == "dora@example.com"
    assert message["X-Original-Reply-To"] == "customer@example.com"
    assert (message["Subject"], message.get_content().strip()) == ("Hello", "Hi")
    # No command of the conversation names anybody else.
    commands = smtp.wire().split(b"DATA\r\n")[0]
    assert b"example.com" not in commands
    assert context.states("k") == {"dev@example.net": "sent"}


def test_without_it_nothing_is_redirected(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    assert run(mailer(), context, MAIL).kind == "done"
    assert len(smtp.received[0].recipients) == 4
    assert smtp.received[0].message["X-Original-To"] is None


def test_the_outbox_and_the_http_provider_redirect_too(context: Context, mailer: Mailer, tmp_path: Path) -> None:
    assert run(mailer(host="", redirect_to="dev@example.net"), context, MAIL).kind == "done"
    (file,) = (tmp_path / "outbox").glob("*.eml")
    assert message_from_bytes(file.read_bytes(), policy=policy.default)["To"] == "dev@example.net"
    server = ResendServer()
    try:
        resend = mailer(provider="resend", host="", api_key=KEY, api_base=server.url, redirect_to="dev@example.net")
        assert run(resend, context, {**MAIL, "key": "k2"}).kind == "done"
        (mail,) = server.accepted
    finally:
        server.close()
    assert (mail["to"], "cc" in mail, "bcc" in mail, "reply_to" in mail) == (["dev@example.net"], False, False, False)
    assert mail["headers"]["X-Original-Bcc"] == "dora@example.com"


def test_a_mail_that_went_to_staging_is_not_taken_for_sent_to_its_recipients(
    context: Context, smtp: SmtpServer, mailer: Mailer
) -> None:
    assert run(mailer(redirect_to="dev@example.net"), context, MAIL).kind == "done"
    assert run(mailer(), context, MAIL, msg_id=2).kind == "done"
    assert smtp.count("ann@example.com") == 1


def test_it_is_announced_at_the_start_and_by_the_check(program_start: str) -> None:
    line = "SMTP_REDIRECT_TO is set: every mail goes to dev@example.net and to NOBODY else"
    assert load_settings({"smtp_redirect_to": "dev@example.net"}).warnings == (line,)
    assert line in program_start
    steps = check(EmailConfig(redirect_to="dev@example.net"))
    assert any(step.step == "redirect" and "dev@example.net" in step.detail for step in steps)


@pytest.fixture
def program_start(dsn: str) -> str:
    program = Program(DATABASE_URL=dsn, SMTP_REDIRECT_TO="dev@example.net")
    return program.ok("start", "-q", "email", "--burst").err


@pytest.mark.parametrize(
    "value", ["two@example.net,three@example.net", "no address", "a@b@c", "a@b\r\nBcc: x@y.example"]
)
def test_it_must_be_one_address(value: str) -> None:
    with pytest.raises(ConfigError, match=r"(?i)smtp.redirect.to"):
        load_settings({"smtp_redirect_to": value})
    with pytest.raises(ConfigError, match="SMTP_REDIRECT_TO"):
        _ = EmailConfig(redirect_to=value).redirect


# ------------------------------------------------------------------------------------------------- unsubscribing

ONE: dict[str, Any] = {"to": "ann@example.com", "subject": "News", "text": "."}
URL = "https://example.org/off?token=abc,def%20g"


@pytest.mark.parametrize(
    ("fields", "header", "post"),
    [
        ({"unsubscribe_url": URL}, f"<{URL}>", "List-Unsubscribe=One-Click"),
        ({"unsubscribe_mailto": "off@example.org"}, "<mailto:off@example.org>", None),
        (
            {"unsubscribe_url": URL, "unsubscribe_mailto": "off+a?b@example.org"},
            f"<{URL}>, <mailto:off%2Ba%3Fb@example.org>",
            "List-Unsubscribe=One-Click",
        ),
        (
            {"unsubscribe_url": "https://example.org/" + "a" * 870},
            "<https://example.org/" + "a" * 870 + ">",
            "List-Unsubscribe=One-Click",
        ),
        ({}, None, None),
    ],
)
def test_the_way_off_the_list_is_in_the_headers(
    context: Context, smtp: SmtpServer, mailer: Mailer, fields: dict[str, str], header: str | None, post: str | None
) -> None:
    assert run(mailer(), context, {**ONE, **fields}).kind == "done"
    message = smtp.received[0].message
    assert (message["List-Unsubscribe"], message["List-Unsubscribe-Post"]) == (header, post)


@pytest.mark.parametrize(
    "fields",
    [
        {"unsubscribe_url": "http://example.org/off"},
        {"unsubscribe_url": "https://"},
        {"unsubscribe_url": "https://user:pw@example.org/"},
        {"unsubscribe_url": "https://example.org/a b"},
        {"unsubscribe_url": "https://example.org/a\r\nBcc: eve@example.com"},
        {"unsubscribe_url": "https://example.org/>, <https://evil.example"},
        {"unsubscribe_url": "https://example.org/ü"},
        {"unsubscribe_url": "https://[::1/"},
        {"unsubscribe_url": "javascript:alert(1)"},
        {"unsubscribe_mailto": "Off <off@example.org>"},
        {"unsubscribe_mailto": "mailto:off@example.org"},
        {"unsubscribe_mailto": "off@example.org\r\nBcc: eve@example.com"},
        {"unsubscribe_mailto": "öff@example.org"},
        {"unsubscribe_mailto": "a@example.org, b@example.org"},
        {"unsubscribe_url": URL, "headers": {"List-Unsubscribe": "<https://example.org/>"}},
        {"unsubscribe_url": URL, "cc": "bob@example.com"},
    ],
)
def test_a_way_off_the_list_that_cannot_work_is_refused(
    context: Context, smtp: SmtpServer, mailer: Mailer, fields: dict[str, Any]
) -> None:
    outcome = run(mailer(), context, {**ONE, **fields})
    assert outcome.kind == "invalid"
    assert "eve@example.com" not in outcome.reason
    assert smtp.received == []
