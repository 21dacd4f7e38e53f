"""What a message may ask for: hostile input sends nothing, templates and attachments keep their place."""

from __future__ import annotations

import json
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from email_context import Context, Mailer, MemoryStorage, run
from smtp_server import SmtpServer

from queue_worker.errors import ConfigError, InvalidPayload
from queue_worker.processors.email import EmailPayload
from queue_worker.processors.email_payload import ATTACHMENT_TYPES

pytest_plugins = ["email_fixtures"]

MAIL: dict[str, Any] = {"to": "ann@example.com", "subject": "Hello", "text": "How are you?"}
FILE = {"key": "reports/2030/sales.csv"}

# (what is added to MAIL, the field that the error names); every text with EVIL in it must not be repeated.
HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"to": "ann@example.com, EVIL@example.com"}, "to"),
    ({"to": ["ann@example.com", "bob@example.com; EVIL@example.com"]}, "to.1"),
    ({"to": "ann@example.com\r\nBcc: EVIL@example.com"}, "to"),
    ({"to": "Ann\r\nBcc: EVIL@example.com <ann@example.com>"}, "to"),
    ({"to": "ann@example.com\x00EVIL"}, "to"),
    ({"to": "Ann\u2028Bcc: EVIL <ann@example.com>"}, "to"),
    ({"to": "ann@example.com> SIZE=1 <EVIL@example.com"}, "to"),
    ({"to": []}, "to"),
    ({"to": {"address": "EVIL@example.com"}}, "to"),
    ({"cc": "EVIL"}, "cc"),
    ({"bcc": ["EVIL@"]}, "bcc"),
    ({"reply_to": "a@b.c, EVIL@example.com"}, "reply_to"),
    ({"from": "EVIL@example.com"}, "from"),
    ({"sender": "EVIL@example.com"}, "sender"),
    ({"subject": "Hello\r\nBcc: EVIL@example.com"}, "subject"),
    ({"subject": "Hello\nEVIL"}, "subject"),
    ({"subject": "Hello\u2029EVIL"}, "subject"),
    ({"subject": "Hello\x85EVIL"}, "subject"),
    ({"subject": "x" * 999}, "subject"),
    ({"subject": " "}, "subject"),
    ({"subject": None}, "subject"),
    ({"text": "a\x00EVIL"}, "text"),
    ({"text": None}, "text"),
    ({"body": "EVIL"}, "body"),
    ({"headers": {"Bcc": "EVIL@example.com"}}, "headers"),
    ({"headers": {"From": "EVIL@example.com"}}, "headers"),
    ({"headers": {"X-Mailer": "EVIL"}}, "headers"),
    ({"headers": {"Precedence": "bulk\r\nBcc: EVIL@example.com"}}, "headers"),
    ({"headers": {"Precedence": "ЗЛО EVIL"}}, "headers"),
    ({"headers": {"References": "a", "references": "EVIL"}}, "headers"),
    ({"headers": {"References": "x" * 901}}, "headers"),
    ({"template": "welcome", "text": "EVIL"}, "template"),
    ({"text": None, "template": "../EVIL"}, "template"),
    ({"text": None, "template": "/etc/EVIL"}, "template"),
    ({"text": None, "template": "_layout"}, "template"),
    ({"text": None, "template": "EVIL"}, "template"),
    ({"text": None, "template": "{{7*7}}"}, "template"),
    ({"text": None, "template": "welcome", "subject": None, "context": {"name": "a\r\nBcc: EVIL@b.c"}}, "context"),
    ({"text": None, "template": "welcome", "context": {"nam": "EVIL"}}, "context"),
    ({"text": None, "template": "welcome", "context": {"name": "EVIL\x00"}}, "context"),
    ({"context": {"name": "EVIL"}}, "context"),
    ({"key": "a\nEVIL"}, "key"),
    ({"key": ""}, "key"),
    ({"attachments": [{"key": "../EVIL.csv"}]}, "attachments.0.key"),
    ({"attachments": [{"key": "/etc/EVIL.txt"}]}, "attachments.0.key"),
    ({"attachments": [{"key": "file:///etc/EVIL.txt"}]}, "attachments.0.key"),
    ({"attachments": [{"key": "https://EVIL.example/a.pdf"}]}, "attachments.0.key"),
    ({"attachments": [{"key": "a/../EVIL.csv"}]}, "attachments.0.key"),
    ({"attachments": [{"key": "..\\EVIL.csv"}]}, "attachments.0.key"),
    ({"attachments": [{"key": "a//EVIL.csv"}]}, "attachments.0.key"),
    ({"attachments": [{"key": "%2e%2e/EVIL.csv"}]}, "attachments.0.key"),
    ({"attachments": [{"key": "EVIL.exe"}]}, "attachments.0"),
    ({"attachments": [FILE | {"filename": "EVIL.exe"}]}, "attachments.0.filename"),
    ({"attachments": [FILE | {"filename": "EVIL.csv\r\nX: y"}]}, "attachments.0.filename"),
    ({"attachments": [FILE | {"filename": "../EVIL.csv"}]}, "attachments.0.filename"),
    ({"attachments": [FILE | {"content_type": "text/csv\r\nEVIL: 1"}]}, "attachments.0"),
    ({"attachments": [FILE | {"content_type": "application/x-msdownload"}]}, "attachments.0"),
    ({"attachments": [FILE] * 21}, "attachments"),
    ({"to": [f"user{number}@example.com" for number in range(51)]}, "to"),
]


def test_hostile_input_sends_nothing_and_is_not_repeated(
    context: Context, smtp: SmtpServer, mailer: Mailer, storage: MemoryStorage
) -> None:
    storage[FILE["key"]] = b"a;b\n"
    processor = mailer()
    for number, (hostile, field) in enumerate(HOSTILE):
        outcome = run(processor, context, MAIL | hostile, msg_id=number)
        assert outcome.kind == "invalid", hostile
        assert field in outcome.reason, hostile
        assert "EVIL" not in outcome.reason, hostile
        assert "Value error" not in outcome.reason, hostile
        assert context.calls == [], hostile
    assert smtp.connections == []


def test_what_is_no_mail_at_all_is_invalid(mailer: Mailer) -> None:
    processor = mailer()
    for text in ("", "null", "[]", '"text"', "{", "[" * 5000, '{"to": "\\ud800@example.com"}', None):
        with pytest.raises(InvalidPayload):
            processor.parse(text)


def test_a_payload_made_in_python_is_the_same_as_one_from_json() -> None:
    made = EmailPayload(to=["Ann <ann@example.com>"], subject="Hello", text="Hi")
    read = EmailPayload.model_validate_json(
        '{"to": "Ann <ann@example.com>", "subject": "Hello", "body": "Hi", "cc": null}'
    )
    assert made == read == EmailPayload.model_validate_json(made.model_dump_json())
    assert made.request_hash() == read.request_hash()
    assert EmailPayload.model_json_schema()["properties"]["to"]["items"]["type"] == "string"


def test_a_field_of_a_later_version_does_not_change_the_hash_of_a_mail() -> None:
    class Later(EmailPayload):
        priority: str = "normal"

    mail: dict[str, Any] = {"to": ["ann@example.com"], "subject": "Hello", "text": "Hi"}
    assert Later(**mail).request_hash() == EmailPayload(**mail).request_hash()
    assert Later(**mail, priority="high").request_hash() != EmailPayload(**mail).request_hash()


# ---- languages

LANGUAGES = {
    "Cyrillic": ("Пётр Иванов", "Ваш заказ № 7 — готов и ждёт вас в пункте выдачи на улице Большая Полянка, дом 7"),
    "Chinese": (
        "王小明",
        "您的订单已准备好，请尽快到取货点领取您的包裹，谢谢您的惠顾，欢迎再次光临我们的商店，祝您生活愉快",
    ),
    "Korean": (
        "김철수",
        "주문하신 상품이 준비되었습니다. 가까운 매장에서 찾아가시기 바랍니다. 이용해 주셔서 감사합니다 고객님",
    ),
    "emoji": ("Zoë 🦊", "🎉 " * 30 + "end"),
}


def assert_says(message: EmailMessage, name: str, text: str) -> None:
    assert message["To"].addresses[0].display_name == name
    assert message["Subject"] == text
    plain, html = (message.get_body([kind]) for kind in ("plain", "html"))
    assert plain is not None
    assert html is not None
    assert plain.get_content().strip() == text
    assert html.get_content().strip() == f"<p>{text}</p>"
    (attachment,) = message.iter_attachments()
    assert attachment.get_filename() == f"{text}.csv"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("way", ["smtp", "eml"])
def test_every_language_survives(
    context: Context, smtp: SmtpServer, mailer: Mailer, storage: MemoryStorage, tmp_path: Path, language: str, way: str
) -> None:
    name, text = LANGUAGES[language]
    storage["a.csv"] = b"a"
    body = {
        "to": f"{name} <someone@example.com>",
        "subject": text,
        "text": text,
        "html": f"<p>{text}</p>",
        "attachments": [{"key": "a.csv", "filename": f"{text}.csv"}],
    }
    processor = mailer(from_name=name) if way == "smtp" else mailer(from_name=name, host="")
    outcome = run(processor, context, body)
    assert outcome.kind == "done"
    assert outcome.note["subject"] == text
    data = smtp.received[0].data if way == "smtp" else next((tmp_path / "outbox").glob("*.eml")).read_bytes()
    assert data.isascii()
    message = message_from_bytes(data, policy=policy.default)
    assert isinstance(message, EmailMessage)
    assert message["From"].addresses[0].display_name == name
    assert_says(message, name, text)


# ---- templates


def test_a_template_gives_subject_text_and_html(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    body = {"to": "ann@example.com", "template": "welcome", "context": {"name": "Ann & Bob", "product": "Shop"}}
    assert run(mailer(), context, body).kind == "done"
    message = smtp.received[0].message
    assert message["Subject"] == "Welcome to Shop, Ann & Bob"
    plain, html = (message.get_body([kind]) for kind in ("plain", "html"))
    assert plain is not None
    assert html is not None
    assert plain.get_content().splitlines()[0] == "Hello Ann & Bob,"
    assert "Hello Ann &amp; Bob," in html.get_content()
    assert "Welcome" not in plain.get_content()


def test_what_looks_like_a_template_in_the_data_is_text(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    hostile = "{{ ''.__class__ }} {% for x in [] %} <script>alert(1)</script>"
    assert run(mailer(), context, {"to": "a@b.c", "template": "welcome", "context": {"name": hostile}}).kind == "done"
    message = smtp.received[0].message
    plain, html = (message.get_body([kind]) for kind in ("plain", "html"))
    assert plain is not None
    assert html is not None
    assert hostile in plain.get_content()
    assert hostile in message["Subject"]
    assert "<script>" not in html.get_content()
    assert "{{ &#39;&#39;.__class__ }}" in html.get_content()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("welcome", {"name": "n"}),
        ("password_reset", {"url": "https://example.com/r"}),
        ("password_reset", {"url": "https://example.com/r", "name": "n", "minutes": 30}),
        ("report_ready", {"report": "Sales"}),
        ("report_ready", {"report": "Sales", "name": "n", "rows": 3, "url": "https://example.com/s"}),
    ],
)
def test_the_shipped_templates_need_only_what_they_say(
    context: Context, smtp: SmtpServer, mailer: Mailer, name: str, data: dict[str, Any]
) -> None:
    assert run(mailer(), context, {"to": "a@b.c", "template": name, "context": data}).kind == "done"
    plain = smtp.received[0].message.get_body(["plain"])
    assert plain is not None
    assert all(str(value) in plain.get_content() for value in data.values())
    assert "\n\n\n" not in plain.get_content().replace("\r", "")


def test_ones_own_templates_come_first(context: Context, smtp: SmtpServer, mailer: Mailer, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "welcome.txt").write_text("{% block subject %}Привет{% endblock %}\nСвой {{ name }}", "utf-8")
    (folder / "only_html.html").write_text("{% block subject %}A & {{ b }}{% endblock %}<p>{{ b }}</p>", "utf-8")
    (folder / "no_subject.txt").write_text("x", "utf-8")
    (folder / "escape.txt").write_text("{% block subject %}s{% endblock %}{{ a.__class__.__mro__ }}", "utf-8")
    processor = mailer(templates_dir=folder)
    run(processor, context, {"to": "a@b.c", "template": "welcome", "context": {"name": "Я"}}, msg_id=1)
    run(processor, context, {"to": "a@b.c", "template": "only_html", "context": {"b": "B & C"}}, msg_id=2)
    first, second = (one.message for one in smtp.received)
    assert first["Subject"] == "Привет"
    plain = first.get_body(["plain"])
    assert plain is not None
    assert plain.get_content().strip() == "Свой Я"
    assert second["Subject"] == "A & B & C"
    assert second.get_content_type() == "text/html"
    missing = run(processor, context, {"to": "a@b.c", "template": "no_subject"}, msg_id=3)
    assert (missing.kind, missing.reason.partition(":")[0]) == ("invalid", "subject")
    given = run(processor, context, {"to": "a@b.c", "template": "no_subject", "subject": "Mine"}, msg_id=4)
    assert given.kind == "done"
    escape = run(processor, context, {"to": "a@b.c", "template": "escape", "context": {"a": 1}}, msg_id=5)
    assert escape.kind == "invalid"
    assert "class" not in smtp.wire().decode()


def test_a_template_that_cannot_be_parsed_is_named_at_the_start(mailer: Mailer, tmp_path: Path) -> None:
    (tmp_path / "broken.txt").write_text("a\n{% if %}", "utf-8")
    with pytest.raises(ConfigError, match=r"broken\.txt, line 2"):
        mailer(templates_dir=tmp_path)


# ---- attachments and headers


def test_attachments_come_from_the_storage(
    context: Context, smtp: SmtpServer, mailer: Mailer, storage: MemoryStorage
) -> None:
    storage |= {"r/1.csv": "a;ж\n".encode(), "r/2.pdf": b"%PDF\r\n.\r\n\x00\xff", "r/3": b"plain"}
    attachments = [{"key": "r/1.csv"}, {"key": "r/2.pdf", "filename": "Отчёт.pdf"}, {"key": "r/3", "filename": "n.txt"}]
    assert run(mailer(), context, MAIL | {"attachments": attachments}).kind == "done"
    parts = list(smtp.received[0].message.iter_attachments())
    assert [(one.get_content_type(), one.get_filename()) for one in parts] == [
        ("text/csv", "1.csv"),
        ("application/pdf", "Отчёт.pdf"),
        ("text/plain", "n.txt"),
    ]
    assert [one.get_payload(decode=True) for one in parts] == [storage["r/1.csv"], storage["r/2.pdf"], b"plain"]
    assert parts[0].get_content() == "a;ж\n"


def test_attachments_have_a_size_limit_that_is_checked_before_they_are_read(
    context: Context, smtp: SmtpServer, mailer: Mailer, storage: MemoryStorage
) -> None:
    storage |= {"a.csv": b"x" * 600, "b.csv": b"x" * 500}
    attachments = [{"key": "a.csv"}, {"key": "b.csv"}]
    outcome = run(mailer(max_attachment_bytes=1000), context, MAIL | {"attachments": attachments})
    assert (outcome.kind, outcome.reason) == ("invalid", "attachments: 1100 bytes in all, 1000 are allowed")
    assert smtp.connections == []
    assert run(mailer(max_attachment_bytes=1100), context, MAIL | {"attachments": attachments}).kind == "done"


def test_an_attachment_that_is_not_there_yet_is_retried(
    context: Context, smtp: SmtpServer, mailer: Mailer, storage: MemoryStorage
) -> None:
    body = MAIL | {"attachments": [{"key": "late.csv"}]}
    assert run(mailer(), context, body).kind == "retry"
    storage["late.csv"] = b"a"
    assert run(mailer(), context, body, attempt=2).kind == "done"


def test_the_headers_that_may_be_set_arrive_as_they_are(context: Context, smtp: SmtpServer, mailer: Mailer) -> None:
    headers = {
        "list-unsubscribe": "<https://example.com/u?" + "token" * 30 + ">, <mailto:leave@example.com>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        "X-Entity-Ref-ID": "order-7",
        "References": " ".join(f"<{number}.{'x' * 60}@example.com>" for number in range(5)),
        "In-Reply-To": "<1@example.com>",
        "Auto-Submitted": "auto-generated",
        "Precedence": "bulk",
    }
    assert run(mailer(), context, MAIL | {"headers": headers}).kind == "done"
    message = smtp.received[0].message
    for name, value in headers.items():
        assert " ".join(str(message[name]).split()) == value


def test_every_type_that_may_be_attached_can_be(mailer: Mailer) -> None:
    for ending in ATTACHMENT_TYPES:
        payload = EmailPayload.model_validate_json(json.dumps(MAIL | {"attachments": [{"key": f"a{ending}"}]}))
        assert payload.attachments[0].mime_type == ATTACHMENT_TYPES[ending]
