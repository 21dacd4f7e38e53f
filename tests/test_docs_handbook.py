"""docs/handbook.md has a heading for every alert of the workers and every rule for Prometheus, and no other."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import yaml

from tests.pages import ROOT

PAGE = (ROOT / "docs" / "handbook.md").read_text()
ALERTS = PAGE.split("## Alerts")[1]


def sections() -> dict[str, str]:
    """The text below each heading of an alert, by each name in the heading."""
    found = re.findall(r"^### ([^\n]+)\n(.*?)(?=^### |\Z)", ALERTS, re.S | re.M)
    return {name: text for heading, text in found for name in re.findall(r"`(\w+)`", heading)}


def own_alerts(db: psycopg.Connection[Any]) -> set[str]:
    """The names that the functions of the database give to alerts."""
    bodies = db.execute(
        "select string_agg(prosrc, '') from pg_proc where proname in ('alert_queue', 'alert_conditions')"
        " and pronamespace = 'queue_worker_data'::regnamespace"
    ).fetchone()
    assert bodies is not None
    return set(re.findall(r"(?:name := |query select )'(\w+)'", bodies[0]))


def rules() -> set[str]:
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus-alerts.yml").read_text())["groups"]
    return {rule["alert"] for group in groups for rule in group["rules"]}


def test_every_alert_and_every_rule_has_its_heading(db: psycopg.Connection[Any]) -> None:
    own = own_alerts(db)
    assert {"backlog", "dead", "worker_gone"} < own
    assert sections().keys() == own | rules()


def test_every_section_says_what_to_do_and_how_to_see_that_it_is_over() -> None:
    assert [name for name, text in sections().items() if "Over: " not in text] == []
    assert [name for name, text in sections().items() if "| do |" not in text and "ost likely" not in text] == []
