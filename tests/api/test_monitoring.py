"""What watches the metrics: live workers, one of them started anew; the dashboard and rules of `deploy/`; the page."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.api.served import served
from tests.api.test_metrics import samples
from tests.helpers import wait_until
from tests.sql.engine import Engine
from tests.worker.conftest import shared_zygote, zygote
from tests.worker.processes import Zygote

__all__ = ["shared_zygote", "zygote"]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text()
DASHBOARD = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
RULES = yaml.safe_load((ROOT / "deploy" / "prometheus-alerts.yml").read_text())

_ENDINGS = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


@pytest.fixture
def exported(dsn: str, db: psycopg.Connection[Any]) -> set[str]:
    """The names of all series that `/metrics` has, whether they have values yet or not."""
    with served(dsn) as client:
        families = list(text_string_to_metric_families(client.get("/metrics").text))
    return {family.name + ending for family in families for ending in _ENDINGS.get(family.type, ("",))}


def names(text: str) -> set[str]:
    return set(re.findall(r"\bqueue_worker_[a-z_]+", text))


def test_two_live_workers_of_which_one_is_started_anew_count_every_run_once(
    dsn: str, db: psycopg.Connection[Any], zygote: Zygote, tmp_path: Path
) -> None:
    engine = Engine(db).create()
    first, second = (zygote.start(dsn, tmp_path) for _ in range(2))
    wait_until(lambda: first.events("worker.ready") and second.events("worker.ready"), 30)
    with served(dsn) as client:
        engine.fill(50)
        wait_until(lambda: engine.count("archive") == 50, 30)
        first.signal(signal.SIGTERM)
        assert first.ended() == 0
        third = zygote.start(dsn, tmp_path)
        wait_until(lambda: third.events("worker.ready"), 30)
        engine.fill(50)
        wait_until(lambda: engine.count("archive") == 100, 30)
        wait_until(lambda: engine.value("select count(*) from queue_worker.workers where alive") == 2)
        # Nothing waits for the end of a worker: the settle counts, and the claim notes.
        live = samples(client)
        assert live["queue_worker_messages_done_total", "work"] == 100
        assert live["queue_worker_pickup_seconds_count", "work"] == 100
        assert live["queue_worker_workers",] == 2
        for process in (second, third):
            process.signal(signal.SIGTERM)
            assert process.ended() == 0
        after = samples(client)
    runs = sum(len(process.events("message.done")) for process in (first, second, third))
    assert after["queue_worker_messages_done_total", "work"] == runs == 100
    assert after["queue_worker_duration_seconds_count", "work"] == 100
    assert after["queue_worker_workers",] == 0


def test_the_dashboard_and_the_rules_ask_for_what_is_exported(exported: set[str]) -> None:
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    queries += [variable["definition"] for variable in DASHBOARD["templating"]["list"] if "definition" in variable]
    rules = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
    assert len(queries) > 15
    assert len(rules) > 10
    for query in (*queries, *rules):
        found = names(query)
        assert found, query
        assert found <= exported, query
        # Every process that serves them tells the same numbers: a sum over instances would count them twice.
        assert not re.search(r"\bsum\b(?! ?\(max by)", query), query
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in names("".join(queries))} == families


def test_the_dashboard_can_be_imported_and_asks_for_its_data_source() -> None:
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "queue"]
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    sources = [panel["datasource"] for panel in panels]
    sources += [target["datasource"] for panel in panels for target in panel["targets"]]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    places = [tuple(panel["gridPos"][side] for side in "xywh") for panel in panels]
    squares = [(x + i, y + j) for x, y, w, h in places for i in range(w) for j in range(h)]
    assert len(set(squares)) == len(squares)
    assert max(x for x, _ in squares) == 23


def test_every_rule_says_what_to_do() -> None:
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description"}


def test_the_page_lists_all_rules_and_its_blocks_are_right() -> None:
    assert set(re.findall(r"^\| `(QueueWorker\w+)`", PAGE, re.M)) == {
        rule["alert"] for group in RULES["groups"] for rule in group["rules"]
    }
    for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.S | re.M):
        assert set(yaml.safe_load(block)) <= {"scrape_configs", "rule_files"}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M):
        compile(block, "metrics.md", "exec")
