"""docs/metrics.md and the dashboard for Grafana name series that there are; the rules: tests/api/test_monitoring.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import psycopg.rows
from prometheus_client.parser import text_string_to_metric_families

from queue_worker.metrics import render
from tests.sql.engine import Engine

ROOT = Path(__file__).parent.parent
NAME = r"queue_worker_[a-z_]+"


def exported(db: psycopg.Connection[Any]) -> set[str]:
    """The names of all samples of a database in which everything has happened once."""
    engine = Engine(db).create()
    engine.fill(1)
    engine.settle(engine.take(1))
    db.execute("select queue_worker.heartbeat('w', 'h', 1, '1', array['work'], 5, 2)")
    db.execute(
        "select queue_worker.record_timings(%s, %s)",
        [
            '[{"queue": "work", "bounds": [1], "counts": [1, 2], "total": 4}]',
            json.dumps([{"name": name, "queue": "work", "count": 1} for name in ("lost_leases", "reconnects")]),
        ],
    )

    def rows(function: str, **params: Any) -> list[dict[str, Any]]:
        names = ", ".join(f"{name} => {value}" for name, value in params.items())
        with db.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            return cursor.execute(f"select * from queue_worker.{function}({names})").fetchall()

    text = render(rows)[0].decode()
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def test_the_program_of_the_page_runs() -> None:
    [block] = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "metrics.md").read_text(), re.S | re.M)
    done = subprocess.run([sys.executable, "-c", block], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert done.returncode == 0


def test_every_series_that_is_named_is_exported_and_every_exported_one_is_named(db: psycopg.Connection[Any]) -> None:
    found = exported(db)
    dashboard = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
    used = {name for panel in dashboard["panels"] for one in panel["targets"] for name in re.findall(NAME, one["expr"])}
    assert used <= found
    page = (ROOT / "docs" / "metrics.md").read_text().split("## Traces")[0]
    listed = set(re.findall(f"`({NAME})`", page))
    base = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in found}
    assert listed == base
