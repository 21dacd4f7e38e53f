"""Connections to the mail server: used again, given up when they are dead, closed at the end."""

from __future__ import annotations

import threading
from email import message_from_string, policy
from typing import Any

import pytest
from email_context import Context, Mailer, run
from smtp_server import DROP, SmtpServer

from queue_worker.processors import email_smtp
from tests.helpers import wait_until

pytest_plugins = ["email_fixtures"]


def mail(number: int, **more: Any) -> dict[str, Any]:
    return {"to": f"user{number}@example.com", "subject": f"Mail {number}", "text": "."} | more


def test_one_connection_carries_many_mails(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    processor = mailer()
    smtp.answer("RCPT", "550 5.1.1 no", to="user2@example.com")
    smtp.answer("RCPT", "451 4.7.1 later", to="user3@example.com")
    kinds = [run(processor, context, mail(number), msg_id=number).kind for number in range(6)]
    assert kinds == ["done", "done", "reject", "retry", "done", "done"]
    assert len(smtp.connections) == 1
    assert processor.close is not None
    processor.close()
    wait_until(lambda: smtp.closed == 1)
    assert smtp.wire().upper().endswith(b"QUIT\r\n")


def test_five_threads_send_a_hundred_mails_over_five_connections(
    context: Context, smtp: SmtpServer, mailer: Mailer
) -> None:
    processor = mailer()
    numbers = iter(range(100))
    lock = threading.Lock()
    kinds: list[str] = []

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            kinds.append(run(processor, context, mail(number), msg_id=number).kind)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kinds == ["done"] * 100
    assert sorted(one.recipients for one in smtp.received) == sorted((f"user{n}@example.com",) for n in range(100))
    assert len(smtp.connections) <= 5


def test_a_connection_that_the_server_has_closed_is_replaced(
    context: Context, smtp: SmtpServer, mailer: Mailer
) -> None:
    processor = mailer()
    assert run(processor, context, mail(1), msg_id=1).kind == "done"
    smtp.cut()
    assert run(processor, context, mail(2), msg_id=2).kind == "done"
    assert len(smtp.connections) == 2


@pytest.mark.parametrize("fault", [DROP, "421 4.4.2 idle for too long"])
def test_a_kept_connection_that_fails_at_once_costs_no_attempt(
    context: Context, smtp: SmtpServer, mailer: Mailer, fault: str
) -> None:
    processor = mailer()
    assert run(processor, context, mail(1), msg_id=1).kind == "done"
    smtp.answer("MAIL", fault)
    assert run(processor, context, mail(2), msg_id=2).kind == "done"
    assert (smtp.count("user2@example.com"), len(smtp.connections)) == (1, 2)


def test_a_connection_that_was_idle_for_long_is_not_used_again(
    context: Context, smtp: SmtpServer, mailer: Mailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = mailer()
    run(processor, context, mail(1), msg_id=1)
    monkeypatch.setattr(email_smtp, "MAX_IDLE", 0.0)
    run(processor, context, mail(2), msg_id=2)
    assert len(smtp.connections) == 2
    wait_until(lambda: smtp.closed == 1)


def test_a_connection_is_given_up_after_a_lost_answer(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    processor = mailer()
    smtp.answer("DATA", DROP)
    run(processor, context, mail(1), msg_id=1)
    run(processor, context, mail(2), msg_id=2)
    assert len(smtp.connections) == 2


def test_a_connection_that_cannot_forget_a_refused_mail_is_given_up(
    context: Context, smtp: SmtpServer, mailer: Mailer
) -> None:
    processor = mailer()
    smtp.answer("RCPT", "550 5.1.1 no", to="user1@example.com")
    smtp.answer("RSET", DROP)
    assert run(processor, context, mail(1), msg_id=1).kind == "reject"
    assert run(processor, context, mail(2), msg_id=2).kind == "done"
    assert len(smtp.connections) == 2


def test_a_mail_in_flight_is_finished_when_the_client_closes(
    context: Context, smtp: SmtpServer, mailer: Mailer
) -> None:
    processor = mailer()
    assert processor.close is not None
    processor.close()
    assert run(processor, context, mail(1), msg_id=1).kind == "done"
    wait_until(lambda: smtp.closed == 1)


def test_a_mail_over_the_servers_limit_is_not_even_begun(context: Context, mailer: Mailer) -> None:
    with SmtpServer(max_bytes=2000) as small:
        outcome = run(mailer(port=small.port), context, mail(1, text="x" * 3000))
        assert outcome.kind == "reject"
        assert "the server takes 2000" in outcome.reason
        assert b"MAIL FROM" not in small.wire().upper()


def test_lines_that_look_like_the_end_of_the_mail_are_text(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    text = "one\n.\nMAIL FROM:<evil@example.com>\r\n.\r\n..two\r.\rthree"
    run(mailer(), context, mail(1, text=text))
    (received,) = smtp.received
    assert received.message.get_content().splitlines() == text.splitlines()
    assert b"\n.\r\nMAIL" not in smtp.wire()


def test_an_address_that_is_not_ascii_needs_smtputf8(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    body = mail(1, to=["Иван <иван@пример.example>", "ann@example.com"])
    outcome = run(mailer(), context, body)
    assert outcome.kind == "reject"
    assert "does not offer SMTPUTF8" in outcome.reason
    assert smtp.received == []
    with SmtpServer(utf8=True) as modern:
        assert run(mailer(port=modern.port), context, body | {"key": "again"}).kind == "done"
        (received,) = modern.received
        assert received.recipients == ("иван@xn--e1afmkfd.example", "ann@example.com")
        assert "иван@xn--e1afmkfd.example".encode() in received.data
        message = message_from_string(received.data.decode(), policy=policy.default)
        assert [one.addr_spec for one in message["To"].addresses] == list(received.recipients)
        assert b"SMTPUTF8" in modern.wire()
