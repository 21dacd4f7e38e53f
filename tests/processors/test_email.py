"""The e-mail processor against a real SMTP server and a real ledger: who gets what, how often, and what is recorded."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from email_context import Context, HoldingServer, Mailer, Outcome, run, run_to_end
from smtp_server import DROP, STALL, SmtpServer

from queue_worker.message import Message, Receipt
from queue_worker.processor import Job
from queue_worker.processors import email_ledger
from tests.helpers import wait_until

pytest_plugins = ["email_fixtures"]

MAIL: dict[str, Any] = {"to": "Ann <ann@example.com>", "subject": "Hello", "body": "How are you?", "key": "order-7"}
THREE: dict[str, Any] = MAIL | {"to": ["good@example.com", "slow@example.com", "gone@example.com"]}


def test_a_mail_is_sent_and_recorded(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    outcome = run(mailer(), context, MAIL)
    assert outcome.kind == "done"
    assert outcome.note == {"to": "a**@example.com", "subject": "Hello"}
    (received,) = smtp.received
    assert (received.sender, received.recipients) == ("shop@example.org", ("ann@example.com",))
    message = received.message
    assert message["From"] == "The Shop <shop@example.org>"
    assert message["To"] == "Ann <ann@example.com>"
    assert message["Subject"] == "Hello"
    assert message["Date"]
    assert message.get_content().split() == ["How", "are", "you?"]
    assert context.states("order-7") == {"ann@example.com": "sent"}
    assert context.query("select reply, owner from queue_worker_data.mails") == [
        {"reply": "250 2.0.0 queued as 1", "owner": None}
    ]


def test_a_rerun_sends_nothing_again(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    assert run(mailer(), context, MAIL).kind == "done"
    assert run(mailer(), context, MAIL, attempt=2).kind == "done"
    assert run(mailer(), context, MAIL, msg_id=9).kind == "done"  # a second message for the same mail
    assert smtp.count("ann@example.com") == 1


def test_without_a_key_of_its_own_a_mail_goes_by_the_key_of_the_job(
    context: Context, smtp: SmtpServer, mailer: Mailer
) -> None:
    processor = mailer()
    body = {name: value for name, value in MAIL.items() if name != "key"}
    run(processor, context, body, msg_id=4)
    assert context.states("email:4") == {"ann@example.com": "sent"}
    redriven = Message("email", Receipt(11, 1, None), json.dumps(body), headers={"key": "email:4"})
    processor.handler(Job(redriven, processor.parse(redriven.body), 6, context))
    assert smtp.count("ann@example.com") == 1


def test_bcc_gets_the_mail_and_stands_in_no_header(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    run(mailer(), context, MAIL | {"cc": ["cc@example.com"], "bcc": "secret@example.com", "reply_to": "r@example.com"})
    (received,) = smtp.received
    assert received.recipients == ("ann@example.com", "cc@example.com", "secret@example.com")
    assert b"secret" not in received.data
    assert received.message["Reply-To"] == "r@example.com"


def test_with_bcc_alone_the_recipients_stay_undisclosed(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    run(mailer(), context, {"bcc": ["a@example.com", "b@example.com"], "subject": "s", "text": "t"})
    (received,) = smtp.received
    assert received.recipients == ("a@example.com", "b@example.com")
    assert b"a@example.com" not in received.data


def test_nobody_gets_a_mail_twice_for_being_named_twice(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    run(mailer(), context, MAIL | {"cc": ["ANN@EXAMPLE.COM", "ann@example.com"]})
    assert smtp.received[0].recipients == ("ann@example.com",)


# ---- FAILURE_MODES 66 and 67: temporary and permanent refusals, per recipient


def test_each_recipient_has_an_outcome_of_its_own(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    smtp.answer("RCPT", "451 4.7.1 greylisted", "451 4.7.1 greylisted", to="slow@example.com")
    smtp.answer("RCPT", "550 5.1.1 no such user gone@example.com", to="gone@example.com")
    outcomes = run_to_end(mailer(), context, THREE)
    assert [one.kind for one in outcomes] == ["retry", "retry", "done"]
    assert [smtp.count(one) for one in THREE["to"]] == [1, 1, 0]
    assert context.states("order-7") == {
        "good@example.com": "sent",
        "slow@example.com": "sent",
        "gone@example.com": "bounced",
    }
    assert outcomes[-1].note["bounced"] == 1
    replies = {row["recipient"]: row["reply"] for row in context.query("select * from queue_worker_data.mails")}
    assert replies["gone@example.com"] == "550 5.1.1 no such user gone@example.com"
    first = outcomes[0]
    assert first.reason == "s**@example.com: 451 4.7.1 greylisted"
    assert first.delay == 300
    # Everybody still sees the whole list of recipients.
    assert smtp.received[1].message["To"] == "good@example.com, slow@example.com, gone@example.com"
    assert smtp.received[0].message["Message-ID"] == smtp.received[1].message["Message-ID"]


@pytest.mark.parametrize(
    ("reply", "attempt", "delay"),
    [
        ("450 4.2.0 greylisted", 1, 300),
        ("451 4.7.1 greylisted", 2, 300),
        ("451 4.7.1 greylisted", 3, None),
        ("452 4.5.3 too many recipients", 1, None),
        ("552 5.5.3 too many recipients", 1, None),
        ("421 4.3.2 shutting down", 1, None),
        ("454 4.7.0 try later", 1, None),
        ("530 5.7.0 authentication required", 1, None),
    ],
)
def test_a_temporary_refusal_is_retried(
    context: Context, smtp: SmtpServer, mailer: Mailer, reply: str, attempt: int, delay: float | None
) -> None:
    smtp.answer("RCPT", reply, to="ann@example.com")
    outcome = run(mailer(), context, MAIL, attempt=attempt)
    assert (outcome.kind, outcome.delay) == ("retry", delay)
    assert outcome.reason == f"a**@example.com: {reply}"
    assert context.states("order-7") == {"ann@example.com": "deferred"}
    assert run(mailer(), context, MAIL, attempt=attempt + 1).kind == "done"
    assert smtp.count("ann@example.com") == 1


def test_the_pause_after_greylisting_is_a_setting(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    smtp.answer("RCPT", "451 4.7.1 greylisted", to="ann@example.com")
    assert run(mailer(greylist_delay_seconds=7.5), context, MAIL).delay == 7.5


def test_when_all_recipients_bounced_the_message_is_rejected_and_nobody_is_tried_again(
    context: Context, smtp: SmtpServer, mailer: Mailer
) -> None:
    smtp.answer("RCPT", "550 5.1.1 <ANN@example.com>: unknown", to="ann@example.com")
    smtp.answer("RCPT", "550 5.7.1 go away", to="bob@example.com")
    body = MAIL | {"to": ["ann@example.com", "bob@example.com"]}
    outcome = run(mailer(), context, body)
    assert outcome.kind == "reject"
    assert outcome.reason == (
        "bounced: a**@example.com: 550 5.1.1 <a**@example.com>: unknown; b**@example.com: 550 5.7.1 go away"
    )
    assert run(mailer(), context, body, msg_id=2).reason == outcome.reason
    assert smtp.received == []


def test_a_refusal_of_the_whole_mail_is_one_of_each_recipient(
    context: Context, smtp: SmtpServer, mailer: Mailer
) -> None:
    smtp.answer("DATA", "451 4.3.0 later", "554 5.7.1 spam")
    outcomes = run_to_end(mailer(), context, THREE)
    assert [one.kind for one in outcomes] == ["retry", "reject"]
    assert outcomes[0].reason == "g**@example.com +2: 451 4.3.0 later"
    assert outcomes[1].reason == "bounced: g**@example.com +2: 554 5.7.1 spam"
    assert smtp.received == []


def test_a_refused_sender_is_ours_to_repair_and_no_bounce(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    smtp.answer("MAIL", "550 5.7.1 not your domain")
    outcome = run(mailer(), context, MAIL)
    assert outcome.kind == "retry"
    assert "the server refused the sender: 550 5.7.1 not your domain" in outcome.reason
    assert run(mailer(), context, MAIL, attempt=2).kind == "done"


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "EHLO"])
@pytest.mark.parametrize("fault", [DROP, STALL, "421 4.3.2 shutting down"])
def test_what_fails_before_the_mail_is_sent_is_retried(
    context: Context, smtp: SmtpServer, mailer: Mailer, command: str, fault: str
) -> None:
    smtp.answer(command, fault, to="ann@example.com" if command == "RCPT" else "")
    processor = mailer(timeout_seconds=0.3)
    assert run(processor, context, MAIL).kind == "retry"
    assert context.states("order-7") == {"ann@example.com": "deferred"}
    assert run(processor, context, MAIL, attempt=2).kind == "done"
    assert smtp.count("ann@example.com") == 1


def test_a_server_that_is_not_there_is_retried(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    outcome = run(mailer(port=1), context, MAIL)
    assert outcome.kind == "retry"
    assert "connect: 127.0.0.1:1: " in outcome.reason
    assert context.states("order-7") == {"ann@example.com": "deferred"}


def test_those_who_bounced_before_the_server_went_away_stay_bounced(
    context: Context, smtp: SmtpServer, mailer: Mailer
) -> None:
    smtp.answer("RCPT", "550 5.1.1 no such user", to="good@example.com")
    smtp.answer("RCPT", "421 4.3.2 bye", to="slow@example.com")
    assert [one.kind for one in run_to_end(mailer(), context, THREE)] == ["retry", "done"]
    assert [smtp.count(one) for one in THREE["to"]] == [0, 1, 1]


# ---- FAILURE_MODES 68: the answer to the final dot is lost


def test_after_a_lost_answer_the_mail_is_sent_again_with_the_same_message_id(
    context: Context, smtp: SmtpServer, mailer: Mailer
) -> None:
    smtp.answer("DATA", DROP)
    processor = mailer()
    assert run(processor, context, MAIL).kind == "retry"
    assert context.states("order-7") == {"ann@example.com": "unknown"}
    assert run(processor, context, MAIL, attempt=2).kind == "done"
    first, second = (one.message["Message-ID"] for one in smtp.received)
    assert first == second
    assert first.endswith("@example.org>")
    assert len(first) == len("<>@example.org") + 32


def test_after_a_lost_answer_the_mail_is_held_where_the_policy_says_so(
    context: Context, smtp: SmtpServer, mailer: Mailer
) -> None:
    smtp.answer("DATA", DROP)
    processor = mailer(unknown="hold")
    outcome = run(processor, context, MAIL)
    assert outcome.kind == "reject"
    assert outcome.reason.startswith("unknown_outcome: ")
    assert run(processor, context, MAIL, msg_id=2).kind == "reject"
    assert smtp.count("ann@example.com") == 1
    # A person has looked, and decides.
    context.query("select queue_worker.mail_resolve('order-7', 'deferred')")
    assert run(processor, context, MAIL, msg_id=3).kind == "done"
    assert smtp.count("ann@example.com") == 2


def test_holding_one_recipient_does_not_hold_the_others(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    smtp.answer("RCPT", "451 4.7.1 greylisted", to="slow@example.com")
    smtp.answer("DATA", DROP)
    processor = mailer(unknown="hold")
    outcomes = run_to_end(processor, context, THREE)
    assert [one.kind for one in outcomes] == ["retry", "reject"]
    assert [smtp.count(one) for one in THREE["to"]] == [1, 1, 1]
    assert context.states("order-7")["slow@example.com"] == "sent"


def test_the_answer_to_the_whole_mail_has_a_time_limit_of_its_own(
    context: Context, smtp: SmtpServer, mailer: Mailer
) -> None:
    smtp.answer("DATA", STALL)
    outcome = run(mailer(timeout_seconds=0.2, final_seconds=0.4), context, MAIL)
    assert outcome.kind == "retry"
    assert context.states("order-7") == {"ann@example.com": "unknown"}


def test_421_after_the_mail_means_not_sent(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    smtp.answer("DATA", "421 4.3.2 shutting down")
    assert run(mailer(unknown="hold"), context, MAIL).kind == "retry"
    assert context.states("order-7") == {"ann@example.com": "deferred"}


# ---- crashes, lost databases, and two at once


def _end_window(context: Context) -> None:
    context.query("update queue_worker_data.mails set updated_at = now() - interval '3 minutes'")


@pytest.mark.parametrize(("policy", "kind", "count"), [("resend", "done", 1), ("hold", "reject", 0)])
def test_a_run_that_died_while_it_sent_leaves_the_outcome_unknown(
    context: Context, smtp: SmtpServer, mailer: Mailer, policy: str, kind: str, count: int
) -> None:
    processor = mailer(unknown=policy)
    request_hash = processor.parse(json.dumps(MAIL)).request_hash()
    reserve = {"key": "order-7", "request_hash": request_hash, "recipients": ["ann@example.com"], "owner": "email:1:1"}
    assert context.call("queue_worker.mail_reserve", reserve)[0]["state"] == "reserved"
    # ... and here the process is killed. Nobody can tell, so that the rerun waits out the window first.
    waiting = run(processor, context, MAIL, attempt=2)
    assert waiting.kind == "retry"
    assert waiting.delay is not None
    assert 60 < waiting.delay < 125
    assert smtp.connections == []
    _end_window(context)
    assert run(processor, context, MAIL, attempt=3).kind == kind
    assert smtp.count("ann@example.com") == count


def test_a_short_loss_of_the_database_after_the_mail_makes_no_second_mail(
    context: Context, smtp: SmtpServer, mailer: Mailer
) -> None:
    context.fail["queue_worker.mail_record"] = 3
    assert run(mailer(), context, MAIL).kind == "done"
    assert context.states("order-7") == {"ann@example.com": "sent"}
    assert smtp.count("ann@example.com") == 1


def test_without_a_database_nothing_is_sent(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    context.fail["queue_worker.mail_reserve"] = 1
    assert run(mailer(), context, MAIL).kind == "released"
    assert smtp.connections == []


def test_a_run_that_has_lost_its_message_sends_nothing(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    context.is_cancelled = True
    assert run(mailer(), context, MAIL).kind == "retry"
    assert smtp.connections == []
    assert context.states("order-7") == {}


@pytest.mark.parametrize("processes", [1, 2])
def test_two_messages_with_one_key_at_once_send_one_mail(
    context: Context, smtp: SmtpServer, mailer: Mailer, processes: int
) -> None:
    first = mailer()
    second = first if processes == 1 else mailer()
    barrier = threading.Barrier(2)
    kinds: dict[int, str] = {}

    def work(msg_id: int) -> None:
        barrier.wait()
        kinds[msg_id] = run((first, second)[msg_id - 1], context, MAIL, msg_id=msg_id).kind

    threads = [threading.Thread(target=work, args=[msg_id]) for msg_id in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The slower one has either found the mail sent or stood back.
    assert sorted(kinds.values()) in (["done", "done"], ["done", "retry"])
    assert run(first, context, MAIL, msg_id=1, attempt=2).kind == "done"
    assert run(second, context, MAIL, msg_id=2, attempt=2).kind == "done"
    assert smtp.count("ann@example.com") == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_a_rerun_stands_back_while_the_first_run_still_waits_for_the_server(
    dsn: str, context: Context, mailer: Mailer, processes: int
) -> None:
    outcomes: list[Outcome] = []
    with HoldingServer() as server, closing(Context(dsn)) as other:
        first = mailer(port=server.port, final_seconds=60.0)
        second = first if processes == 1 else mailer(port=server.port)
        late = threading.Thread(target=lambda: outcomes.append(run(first, context, MAIL)))
        late.start()
        try:
            # The engine has given the first run up at its time limit, but its thread goes on.
            wait_until(lambda: server.wire().endswith(b"\r\n.\r\n"))
            rerun = run(second, other, MAIL, attempt=2)
            assert (rerun.kind, rerun.reason) == ("retry", "another run is sending this mail, or died while it did")
            assert rerun.delay is not None
            assert 60 < rerun.delay < 125
            assert len(server.connections) == 1
        finally:
            server.release()
            late.join()
        assert [one.kind for one in outcomes] == ["done"]
        assert run(second, other, MAIL, attempt=3).kind == "done"
        assert server.count("ann@example.com") == 1


def test_a_mail_that_took_too_long_is_not_completed(
    context: Context, smtp: SmtpServer, mailer: Mailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(email_ledger, "TALK_SECONDS", 0.0)
    outcome = run(mailer(), context, MAIL)
    assert (outcome.kind, outcome.reason) == (
        "retry", "a**@example.com: the server was too slow; the mail was not completed",
    )  # fmt: skip
    assert smtp.received == []
    assert context.states("order-7") == {"ann@example.com": "deferred"}


def test_a_held_mail_does_not_make_the_next_run_wait(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    smtp.answer("RCPT", "452 later", "452 later", to="slow@example.com")
    smtp.answer("DATA", DROP)
    outcomes = run_to_end(mailer(unknown="hold"), context, THREE)
    assert [one.kind for one in outcomes] == ["retry", "retry", "reject"]
    assert [smtp.count(one) for one in THREE["to"]] == [1, 1, 1]


def test_a_key_that_was_used_for_another_mail_is_refused(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    processor = mailer()
    run(processor, context, MAIL)
    for other in ({"subject": "Other"}, {"to": "bob@example.com"}, {"cc": "bob@example.com"}):
        outcome = run(processor, context, MAIL | other, msg_id=2)
        assert (outcome.kind, outcome.reason.partition(":")[0]) == ("reject", "key_reuse")
    assert len(smtp.received) == 1


def test_a_mail_that_only_bounced_can_be_corrected_under_its_key(
    context: Context, smtp: SmtpServer, mailer: Mailer
) -> None:
    smtp.answer("RCPT", "550 5.1.1 no such user", to="ann@example.com")
    assert run(mailer(), context, MAIL).kind == "reject"
    assert run(mailer(), context, MAIL | {"to": "anne@example.com"}, msg_id=2).kind == "done"
    assert context.states("order-7") == {"anne@example.com": "sent"}


# ---- the outbox


def test_without_a_mail_server_mails_become_files(context: Context, mailer: Mailer, tmp_path: Path) -> None:
    processor = mailer(host="", from_email="")
    assert run(processor, context, MAIL | {"subject": "Привет 你好 안녕"}).kind == "done"
    (path,) = (tmp_path / "outbox").iterdir()
    assert path.name.endswith(".eml")
    assert path.stat().st_mode & 0o077 == 0
    assert b"From: The Shop <queue-worker@localhost>" in path.read_bytes()
    assert context.states("order-7") == {"ann@example.com": "sent"}
    # A crash before the result was recorded: the rerun writes the same file.
    context.query("update queue_worker_data.mails set state = 'reserved', owner = 'email:1:1'")
    _end_window(context)
    assert run(processor, context, MAIL | {"subject": "Привет 你好 안녕"}, attempt=2).kind == "done"
    assert list((tmp_path / "outbox").iterdir()) == [path]
