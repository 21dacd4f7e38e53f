"""TLS to the mail server: a server that cannot prove who it is sees neither a login nor a mail."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from email_context import Context, Mailer, run
from smtp_server import DROP, SmtpServer, server_tls

from queue_worker.errors import ConfigError
from queue_worker.processors.email import EmailConfig, check

pytest_plugins = ["email_fixtures"]

HOST = "mail.example.test"
LOGIN = ("robot", "s3cret-pass")
MAIL = {"to": "ann@example.com", "subject": "Hello", "text": "How are you?"}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(autouse=True)
def name_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """HOST leads to this machine, but is not one of the names for which plain SMTP is allowed."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        return real("127.0.0.1" if host == HOST else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def options(server: SmtpServer, ca_file: Path | None, **more: Any) -> dict[str, Any]:
    return {
        "host": HOST,
        "port": server.port,
        "user": LOGIN[0],
        "password": LOGIN[1],
        "ca_file": ca_file,
        "from_email": "shop@example.org",
        "timeout_seconds": 5.0,
    } | more


def assert_nothing_leaked(server: SmtpServer) -> None:
    assert b"AUTH" not in server.wire().upper()
    assert b"MAIL FROM" not in server.wire().upper()
    assert server.received == []


@pytest.fixture
def bad_server(authority: trustme.CA, request: pytest.FixtureRequest) -> Iterator[tuple[SmtpServer, str]]:
    """A server that must not be trusted, and what the error has to say about it."""
    fault, secure = request.param
    past = datetime.now(UTC) - timedelta(days=1)
    tls, complaint = {
        "no STARTTLS": (None, "does not offer STARTTLS"),
        "self-signed": (server_tls(trustme.CA(), HOST), "certificate is not valid"),
        "expired": (server_tls(authority, HOST, not_after=past), "expired"),
        "wrong host": (server_tls(authority, "mail.example.org"), "is not valid for"),
    }[fault]
    with SmtpServer(tls=tls, implicit=secure, auth=LOGIN) as server:
        yield server, complaint


BAD = [(fault, False) for fault in ("no STARTTLS", "self-signed", "expired", "wrong host")]
BAD += [(fault, True) for fault in ("self-signed", "expired", "wrong host")]


@pytest.mark.parametrize("bad_server", BAD, indirect=True, ids=lambda fault: f"{fault[0]}, secure={fault[1]}")
def test_a_server_that_must_not_be_trusted_gets_nothing(
    context: Context, mailer: Mailer, bad_server: tuple[SmtpServer, str], ca_file: Path, request: pytest.FixtureRequest
) -> None:
    server, complaint = bad_server
    secure = "secure=True" in request.node.name
    outcome = run(mailer(**options(server, ca_file, secure=secure)), context, MAIL)
    assert outcome.kind == "retry"
    assert "tls: " in outcome.reason
    assert complaint in outcome.reason
    assert "s3cret" not in outcome.reason
    assert_nothing_leaked(server)
    steps = check(EmailConfig(**options(server, ca_file, secure=secure)))
    assert steps[-1].step == "tls"
    assert not steps[-1].ok
    assert complaint in steps[-1].detail
    assert_nothing_leaked(server)


@pytest.mark.parametrize("secure", [False, True])
def test_mail_and_login_travel_inside_tls(
    context: Context, mailer: Mailer, authority: trustme.CA, ca_file: Path, secure: bool
) -> None:
    with SmtpServer(tls=server_tls(authority, HOST), implicit=secure, auth=LOGIN) as server:
        config = options(server, ca_file, secure=secure)
        steps = check(EmailConfig(**config))
        assert [(one.step, one.ok) for one in steps] == [
            (step, True) for step in ("sender", "templates", "connect", "tls", "ehlo", "auth")
        ]
        assert "certificate verified" in steps[3].detail
        assert server.received == []
        assert run(mailer(**config), context, MAIL).kind == "done"
        assert len(server.received) == 1


def test_a_starttls_that_fails_is_never_followed_by_plain_smtp(
    context: Context, mailer: Mailer, authority: trustme.CA, ca_file: Path
) -> None:
    # Offered, and refused when it is asked for: what a man in the middle would do.
    with SmtpServer(tls=server_tls(authority, HOST), auth=LOGIN) as server:
        server.answer("STARTTLS", "454 4.7.0 TLS not available")
        outcome = run(mailer(**options(server, ca_file, allow_plain=True)), context, MAIL)
        assert outcome.kind == "retry"
        assert "STARTTLS: 454" in outcome.reason
        assert_nothing_leaked(server)


def test_plain_smtp_is_for_this_machine_or_where_it_is_allowed(context: Context, mailer: Mailer) -> None:
    with SmtpServer(auth=LOGIN) as server:
        assert run(mailer(**options(server, None)), context, MAIL, msg_id=1).kind == "retry"
        assert run(mailer(**options(server, None, allow_plain=True)), context, MAIL, msg_id=2).kind == "done"
        assert run(mailer(**options(server, None, host="127.0.0.1")), context, MAIL, msg_id=3).kind == "done"
        assert run(mailer(**options(server, None, host="localhost")), context, MAIL, msg_id=4).kind == "done"


def test_a_wrong_password_is_a_clear_error_that_does_not_repeat_it(
    context: Context, mailer: Mailer, authority: trustme.CA, ca_file: Path
) -> None:
    with SmtpServer(tls=server_tls(authority, HOST), auth=LOGIN) as server:
        config = options(server, ca_file, password="wr0ng-pass")
        outcome = run(mailer(**config), context, MAIL)
        assert outcome.kind == "retry"
        assert "auth: the login was refused: 535" in outcome.reason
        assert "check SMTP_USER and SMTP_PASSWORD" in outcome.reason
        assert "wr0ng" not in outcome.reason
        assert "wr0ng" not in repr(EmailConfig(**config))
        step = check(EmailConfig(**config))[-1]
        assert (step.step, step.ok) == ("auth", False)
        # The setting is repaired: nothing was lost.
        assert run(mailer(**options(server, ca_file)), context, MAIL, attempt=2).kind == "done"


def test_a_login_that_the_server_does_not_offer_is_a_clear_error(
    context: Context, mailer: Mailer, authority: trustme.CA, ca_file: Path
) -> None:
    with SmtpServer(tls=server_tls(authority, HOST)) as server:
        outcome = run(mailer(**options(server, ca_file)), context, MAIL)
        assert "the server offers no AUTH" in outcome.reason
        odd = run(mailer(**options(server, ca_file, password="пароль")), context, MAIL, attempt=2)
        assert "пароль" not in odd.reason


def test_a_password_that_is_not_ascii_is_a_clear_error(
    context: Context, mailer: Mailer, authority: trustme.CA, ca_file: Path
) -> None:
    with SmtpServer(tls=server_tls(authority, HOST), auth=LOGIN) as server:
        outcome = run(mailer(**options(server, ca_file, password="пароль")), context, MAIL)
        assert "must be ASCII" in outcome.reason


def test_tls_on_a_port_that_does_not_begin_with_it_says_which_setting_to_change(
    context: Context, mailer: Mailer, ca_file: Path
) -> None:
    with SmtpServer(auth=LOGIN) as server:
        outcome = run(mailer(**options(server, ca_file, secure=True)), context, MAIL)
        assert "use SMTP_SECURE=false" in outcome.reason
        assert_nothing_leaked(server)


def test_the_check_names_the_step_that_fails(ca_file: Path) -> None:
    with SmtpServer() as server:
        server.answer("EHLO", DROP)
        step = check(EmailConfig(**options(server, None, host="127.0.0.1", user="")))[-1]
        assert (step.step, step.ok) == ("ehlo", False)
        steps = check(EmailConfig(**options(server, None, host="127.0.0.1", user="")))
        assert steps[-1] == ("auth", True, "none: SMTP_USER is not set")
        gone = EmailConfig(**options(server, None, host="127.0.0.1", port=1))
        assert check(gone)[-1][:2] == ("connect", False)
    assert check(EmailConfig(**options(server, None, host="no-such-host.invalid")))[-1][:2] == ("connect", False)
    assert check(EmailConfig(**options(server, None, host="a..b")))[-1][:2] == ("connect", False)


def test_the_check_looks_at_the_outbox_where_no_server_is_set(tmp_path: Path) -> None:
    step = check(EmailConfig(outbox_dir=tmp_path / "deep" / "outbox"))[-1]
    assert (step.step, step.ok) == ("outbox", True)
    (tmp_path / "file").touch()
    assert not check(EmailConfig(outbox_dir=tmp_path / "file" / "outbox"))[-1].ok


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"from_email": ""}, "SMTP_FROM_EMAIL"),
        ({"from_email": "a@b.c, d@e.f"}, "SMTP_FROM_EMAIL"),
        ({"from_name": "Shop\r\nBcc: x@y.z"}, "SMTP_FROM_NAME"),
        ({"ca_file": Path("nowhere.pem")}, "QUEUE_WORKER_SMTP_CA_FILE"),
        ({"ca_file": Path(__file__)}, "QUEUE_WORKER_SMTP_CA_FILE"),
        ({"templates_dir": Path("nowhere")}, "QUEUE_WORKER_EMAIL_TEMPLATES"),
    ],
)
def test_settings_that_cannot_work_are_named(mailer: Mailer, wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        mailer(**wrong)
    step = check(EmailConfig(**{"host": "127.0.0.1", "from_email": "a@b.c"} | wrong))[-1]
    assert not step.ok
    assert complaint in step.detail
