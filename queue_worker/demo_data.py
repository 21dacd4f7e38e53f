"""What the demo puts in, and its settings."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple


class Payment(NamedTuple):
    """A row of public.payments; the amount is in minor units. The account steers the sandbox provider."""

    amount_minor: int
    currency: str
    account: str
    description: str


FAILS_TWICE, ALWAYS_FAILS, DECLINED = "fails_twice", "always_fails", "declined"

PAYMENTS = (
    Payment(4990, "EUR", "ann", "Order 1001"),
    Payment(12500, "EUR", "boris", "Заказ 1002"),
    Payment(8000, "USD", "li-wei", "订单 1003"),
    Payment(3550, "USD", "min-jun", "주문 1004"),
    Payment(1999, "EUR", DECLINED, "Order 1005"),
    Payment(2500, "EUR", FAILS_TWICE, "Order 1006"),
    Payment(700, "USD", ALWAYS_FAILS, "Order 1007"),
)

WELCOME: Mapping[str, Any] = MappingProxyType(
    {
        "to": "Анна Петрова <anna@example.com>",
        "template": "welcome",
        "context": {"name": "Анна", "product": "Лавка"},
    }
)
"""Sent by SQL."""

BY_COMMAND: Mapping[str, Any] = MappingProxyType(
    {
        "to": "li.wei@example.com",
        "subject": "欢迎，李伟",
        "text": "您的账户已准备就绪。",
    }
)
"""Sent by `queue-worker send`."""

BATCH: tuple[Mapping[str, Any], ...] = (
    {
        "payload": {
            "to": ["min.jun@example.com", "ann@example.com"],
            "subject": "환영합니다, 민준",
            "html": "<p>계정이 준비되었습니다.</p>",
        }
    },
)
"""Sent by SQL `send_batch`."""

JUNK: Mapping[str, Any] = MappingProxyType({"subjekt": "nobody will get this", "to": 42})
"""Sent by plain pgmq.send; no mail can be made of it."""

REPORT_TITLE = "Payments · Платежи · 付款 · 결제"
REPORT_TO = "boss@example.com"
REPORT_STEM = "payments-1"

MAILS = {
    "Welcome to Лавка, Анна": ("anna@example.com",),
    "欢迎，李伟": ("li.wei@example.com",),
    "환영합니다, 민준": ("min.jun@example.com", "ann@example.com"),
    REPORT_TITLE: (REPORT_TO,),
}
"""The mails that must arrive: recipients by subject."""

MESSAGES = len(PAYMENTS) + len(MAILS) + 1 + 1
"""All messages: payments, mails, the junk, and the report."""

QUEUES = ("email", "reports", "payments")
MAX_ATTEMPTS = 4
RETRY = "1,1,1"


def formats() -> tuple[str, ...]:
    """The formats of the report: pdf where the packages of the extra `pdf` are installed, else html."""
    needed = ("fpdf", "fontTools", "noto_cjk_sans_otc")
    return ("csv", "pdf" if all(importlib.util.find_spec(name) for name in needed) else "html")


def settings(folder: Path, smtp_port: int) -> dict[str, str]:
    """Return the settings of the demo's worker but for its database, by variable; none of them is secret."""
    return {
        "QUEUE_WORKER_STATE_DIR": str(folder),
        "QUEUE_WORKER_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
        "QUEUE_WORKER_RETRY": RETRY,
        "QUEUE_WORKER_CYCLE_SECONDS": "1",
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(smtp_port),
        "SMTP_FROM_EMAIL": "demo@queue-worker.example",
        "SMTP_FROM_NAME": "Demo",
        "QUEUE_WORKER_REPORTS_ALLOWED": "payments=public.payments_report",
        "QUEUE_WORKER_PAYMENTS_PROVIDER": "sandbox",
        "QUEUE_WORKER_PAYMENTS_SOURCE": "public.payment_source",
        "QUEUE_WORKER_PAYMENTS_RESULT": "public.payment_result",
    }
