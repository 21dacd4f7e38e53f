"""Mail by an HTTP API with idempotency keys, against a local server that keeps them."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from email_context import Context, Mailer, MemoryStorage, make_job, run, run_to_end
from resend_server import KEY, ResendServer

from queue_worker.config import load_settings
from queue_worker.errors import ConfigError, Unavailable
from queue_worker.processor import Processor
from queue_worker.processors.email import EmailConfig, check, make_processor

pytest_plugins = ["email_fixtures"]

MAIL = {"to": "ann@example.com", "subject": "Hello", "text": "Hi Ann", "key": "welcome:1"}


@pytest.fixture
def api() -> Iterator[ResendServer]:
    server = ResendServer()
    yield server
    server.close()


@pytest.fixture
def resend(api: ResendServer, mailer: Mailer) -> Processor:
    return mailer(provider="resend", host="", api_key=KEY, api_base=api.url)


def test_a_mail_is_one_request_with_the_key_of_the_mail(
    context: Context, api: ResendServer, resend: Processor, storage: MemoryStorage
) -> None:
    storage["reports/a.csv"] = b"a;b"
    payload = {
        "to": ["Ann Ä <ann@example.com>", '"Doe, Jo" <jo@example.com>'],
        "cc": "carl@example.com",
        "bcc": ["dora@example.com", "ann@example.com"],
        "reply_to": "help@example.org",
        "subject": "Größe 大",
        "text": "Hi",
        "html": "<p>Hi</p>",
        "attachments": [{"key": "reports/a.csv"}],
        "unsubscribe_mailto": "off@example.org",
    }
    assert run(resend, context, payload).kind == "done"
    assert api.accepted == [
        {
            "from": "The Shop <shop@example.org>",
            "to": ["Ann Ä <ann@example.com>", '"Doe, Jo" <jo@example.com>'],
            "cc": ["carl@example.com"],
            "bcc": ["dora@example.com"],
            "reply_to": ["help@example.org"],
            "subject": "Größe 大",
            "text": "Hi",
            "html": "<p>Hi</p>",
            "headers": {"List-Unsubscribe": "<mailto:off@example.org>"},
            "attachments": [
                {"filename": "a.csv", "content_type": "text/csv", "content": base64.b64encode(b"a;b").decode()}
            ],
        }
    ]
    (request,) = api.requests
    assert request["path"] == "/emails"
    assert request["headers"]["Authorization"] == f"Bearer {KEY}"
    assert request["headers"]["Idempotency-Key"].startswith("mail_")
    assert set(context.states("email:1").values()) == {"sent"}
    assert len(context.states("email:1")) == 4


def test_five_attempts_whose_answers_are_lost_send_one_mail(
    context: Context, api: ResendServer, resend: Processor
) -> None:
    api.drop(4)
    outcomes = run_to_end(resend, context, MAIL)
    assert [one.kind for one in outcomes] == ["retry"] * 4 + ["done"]
    assert len(api.accepted) == 1
    assert len(api.requests) == 5
    assert len({one["headers"]["Idempotency-Key"] for one in api.requests}) == 1
    assert context.states("welcome:1") == {"ann@example.com": "sent"}


def test_hold_is_not_needed_while_the_provider_remembers_the_key(
    context: Context, api: ResendServer, mailer: Mailer
) -> None:
    held = mailer(provider="resend", host="", api_key=KEY, api_base=api.url, unknown="hold")
    api.drop()
    assert [one.kind for one in run_to_end(held, context, MAIL)] == ["retry", "done"]
    assert len(api.accepted) == 1


def test_after_24_hours_an_unknown_mail_is_left_to_a_person(
    context: Context, api: ResendServer, resend: Processor
) -> None:
    api.drop()
    assert run(resend, context, MAIL).kind == "retry"
    context.query("update queue_worker_data.mails set first_at = now() - interval '24 hours'")
    api.forget_keys()
    held = run(resend, context, MAIL, attempt=2)
    assert held.kind == "reject"
    assert held.reason.startswith("unknown_outcome: ")
    assert len(api.accepted) == 1
    context.query("select queue_worker.mail_resolve('welcome:1', 'deferred')")
    assert run(resend, context, MAIL, attempt=3).kind == "done"
    assert len(api.accepted) == 2


def test_a_mail_that_never_went_out_is_sent_after_24_hours_too(
    context: Context, api: ResendServer, resend: Processor
) -> None:
    api.answer(401, "missing_api_key")
    assert run(resend, context, MAIL).kind == "retry"
    context.query("update queue_worker_data.mails set first_at = now() - interval '3 days'")
    assert run(resend, context, MAIL, attempt=2).kind == "done"


@pytest.mark.parametrize("status", [429, 503])
def test_a_provider_that_cannot_serve_pauses_the_queue(
    context: Context, api: ResendServer, resend: Processor, status: int
) -> None:
    api.answer(status, "rate_limit_exceeded", headers={"Retry-After": "7"})
    with pytest.raises(Unavailable) as caught:
        resend.handler(make_job(resend, context, MAIL))
    assert caught.value.delay == 7.0
    assert run(resend, context, MAIL, attempt=2).kind == "done"
    assert len(api.accepted) == 1


@pytest.mark.parametrize(("status", "name"), [(422, "validation_error"), (400, "invalid_attachment"), (413, "")])
def test_a_refused_mail_bounces_for_good(
    context: Context, api: ResendServer, resend: Processor, status: int, name: str
) -> None:
    api.answer(status, name, "Invalid `to` field: ann@example.com")
    outcome = run(resend, context, MAIL)
    assert outcome.kind == "reject"
    assert outcome.reason.startswith("bounced: ")
    assert "ann@example.com" not in outcome.reason
    assert context.states("welcome:1") == {"ann@example.com": "bounced"}


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_setting_is_no_fault_of_the_mail(
    context: Context, api: ResendServer, resend: Processor, status: int
) -> None:
    api.answer(status, "invalid_api_key", "API key is invalid")
    outcome = run(resend, context, MAIL)
    assert outcome.kind == "retry"
    assert "QUEUE_WORKER_RESEND_API_KEY" in outcome.reason
    assert context.states("welcome:1") == {"ann@example.com": "deferred"}


@pytest.mark.parametrize(("status", "sent"), [(500, False), (500, True), (504, True), (408, False)])
def test_an_unclear_answer_is_asked_again_with_the_same_key(
    context: Context, api: ResendServer, resend: Processor, status: int, sent: bool
) -> None:
    api.answer(status, "application_error", send=sent)
    assert [one.kind for one in run_to_end(resend, context, MAIL)] == ["retry", "done"]
    assert len(api.accepted) == 1


def test_the_same_request_under_way_is_waited_for(context: Context, api: ResendServer, resend: Processor) -> None:
    api.answer(409, "concurrent_idempotent_requests")
    assert [one.kind for one in run_to_end(resend, context, MAIL)] == ["retry", "done"]
    assert len(api.accepted) == 1


def test_a_key_that_was_used_for_other_content_is_left_to_a_person(
    context: Context, api: ResendServer, mailer: Mailer, tmp_path: Path
) -> None:
    """A template that changed between two attempts: the first mail may have gone out, a second must not."""
    template = tmp_path / "templates" / "news.txt"
    template.parent.mkdir()
    template.write_text("{% block subject %}News{% endblock %}\nold")
    options: dict[str, Any] = {"provider": "resend", "host": "", "api_key": KEY, "api_base": api.url}
    payload = {"to": "ann@example.com", "template": "news", "key": "news:1"}
    api.drop()
    first = mailer(**options, templates_dir=template.parent)
    assert run(first, context, payload).kind == "retry"
    template.write_text("{% block subject %}News{% endblock %}\nnew")
    second = mailer(**options, templates_dir=template.parent)
    outcome = run(second, context, payload, attempt=2)
    assert outcome.kind == "reject"
    assert outcome.reason.startswith("unknown_outcome: ")
    assert len(api.accepted) == 1
    assert context.states("news:1") == {"ann@example.com": "unknown"}


def test_no_connection_means_that_nothing_was_sent(context: Context, api: ResendServer, mailer: Mailer) -> None:
    api.close()
    gone = mailer(provider="resend", host="", api_key=KEY, api_base=api.url)
    outcome = run(gone, context, MAIL)
    assert (outcome.kind, context.states("welcome:1")) == ("retry", {"ann@example.com": "deferred"})
    api.__init__()  # type: ignore[misc] - so that the fixture can close it


def test_a_redrive_does_not_send_a_second_mail(context: Context, api: ResendServer, resend: Processor) -> None:
    assert run(resend, context, MAIL).kind == "done"
    assert run(resend, context, MAIL, msg_id=2).kind == "done"
    assert len(api.requests) == 1


def test_a_mail_for_bcc_alone_is_refused(context: Context, api: ResendServer, resend: Processor) -> None:
    outcome = run(resend, context, {"bcc": "ann@example.com", "subject": "x", "text": "y"})
    assert outcome.kind == "reject"
    assert "recipient in `to`" in outcome.reason
    assert api.requests == []


def test_the_api_key_is_shown_nowhere(context: Context, api: ResendServer, mailer: Mailer) -> None:
    """Not even where the provider repeats it in its answer."""
    other = "re_" + "y" * 24
    wrong = mailer(provider="resend", host="", api_key=other, api_base=api.url)
    outcome = run(wrong, context, MAIL)
    assert outcome.kind == "retry"
    rows = context.query("select * from queue_worker_data.mails")
    config = EmailConfig(provider="resend", api_key=other, api_base=api.url, from_email="shop@example.org")
    steps = check(config)
    for text in (outcome.reason, json.dumps(outcome.note), str(rows), repr(config), repr(steps), repr(wrong.handler)):
        assert other not in text
    assert "invalid" in outcome.reason
    assert not steps[-1].ok
    settings = load_settings({"email_provider": "resend", "resend_api_key": other, "smtp_from_email": "a@b.example"})
    assert other in settings.secret_values()
    assert other not in str(settings.explain())


def test_the_certificate_is_verified(context: Context, mailer: Mailer, tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = ResendServer(tls)
    options: dict[str, Any] = {"provider": "resend", "host": "", "api_key": KEY, "api_base": server.url}
    try:
        stranger = run(mailer(**options), context, MAIL)
        assert (stranger.kind, server.requests) == ("retry", [])
        assert "certificate" in stranger.reason.lower()
        assert run(mailer(**options, ca_file=tmp_path / "ca.pem"), context, MAIL, attempt=2).kind == "done"
    finally:
        server.close()


def test_the_key_never_travels_in_clear() -> None:
    with pytest.raises(ConfigError, match="must not travel in clear"):
        make_processor(
            EmailConfig(provider="resend", api_key=KEY, api_base="http://api.example.com", from_email="a@b.example"),
            MemoryStorage(),
        )


def test_check_asks_without_sending(api: ResendServer) -> None:
    config = EmailConfig(provider="resend", api_key=KEY, api_base=api.url, from_email="shop@example.org")
    assert check(config)[-1] == ("resend", True, "the API key is accepted")
    api.answer(401, "restricted_api_key", "This API key is restricted to only send emails")
    assert check(config)[-1] == ("resend", True, "the API key is accepted, for sending only")
    assert api.accepted == []


# ------------------------------------------------------------------------------------------------- settings

RESEND = {"email_provider": "resend", "resend_api_key": KEY, "smtp_from_email": "shop@example.org"}


def test_retries_must_end_before_the_provider_forgets_the_key() -> None:
    load_settings(RESEND)
    load_settings({"max_attempts": 20})  # SMTP has no key to forget, the sandbox neither
    with pytest.raises(ConfigError, match=r"queue 'email': retries go on for .* resend forgets .* send a mail twice"):
        load_settings({**RESEND, "max_attempts": 20})


@pytest.mark.parametrize("missing", ["resend_api_key", "smtp_from_email"])
def test_what_resend_cannot_do_without_is_named(missing: str) -> None:
    name = {"resend_api_key": "QUEUE_WORKER_RESEND_API_KEY", "smtp_from_email": "SMTP_FROM_EMAIL"}[missing]
    with pytest.raises(ConfigError, match=name):
        load_settings({**RESEND, missing: None})
