"""docs/alerts.md says what is so: its rules, its line, its body and its queries."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker import log, log_events
from queue_worker.alerts import Alerts
from queue_worker.config import load_settings
from queue_worker.config_alerts import AlertFields
from queue_worker.config_units import parse_span
from queue_worker.transport.postgres import PostgresTransport
from tests.hooks import Hooks
from tests.sql.engine import Engine
from tests.test_docs_sql import run

PAGE = (Path(__file__).parent.parent / "docs" / "alerts.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.S | re.M)


def test_the_table_has_every_rule_with_its_default() -> None:
    settings = load_settings()
    shown = dict(re.findall(r"`QUEUE_WORKER_(ALERT_[A-Z_]+)=([0-9]\w*)`", PAGE))
    own = {name for name in AlertFields.model_fields if name in AlertFields.__annotations__}
    assert {name.lower() for name in shown} >= {
        name for name in own if getattr(settings, name) not in (None, False, ())
    }
    for name, value in shown.items():
        if name != "ALERT_CHECK_SECONDS":
            assert parse_span(value) == getattr(settings, name.lower()), name


def test_the_two_settings_of_the_page_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    [block] = blocks("sh")
    for line in block.splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    settings = load_settings()
    assert settings.alert_webhook is not None
    assert list(settings.alert_email_to) == ["ops@example.com", "oncall@example.com"]


def test_the_line_the_body_and_the_queries(db: psycopg.Connection[Any], dsn: str) -> None:
    engine = Engine(db, "email").create()
    engine.send()
    engine.settle([], [(engine.take_one(), "dead", 0, "rejected", "no")])
    written = io.StringIO()
    log.configure("INFO", "human", written)
    detach = log_events.attach()
    with Hooks() as hooks:
        settings = load_settings({"database_url": dsn, "alert_webhook": hooks.url, "alert_webhook_allow_private": True})
        transport = PostgresTransport(lambda: dsn)
        Alerts(transport, settings).step()
        transport.close()
    detach()
    log.configure("INFO", "human", sys.__stderr__)
    wanted = json.loads(blocks("json")[0])
    got = hooks.got[0].body
    assert {**got, "fired_at": wanted["fired_at"]} == wanted
    [line] = re.findall(r"^```\n(ERROR .*)\n```", PAGE, re.M)
    assert line.split() == written.getvalue().split()[-len(line.split()) :]
    for query in blocks("sql"):
        (rows,) = run(db, query)
        assert [(row["name"], row["queue"], row["detail"]) for row in rows] == [("dead", "email", "1 dead letter")]
