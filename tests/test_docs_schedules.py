"""Every block of docs/schedules.md does what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker.schedule_cron import parse
from tests.blackbox.program import Program
from tests.test_docs_sql import run

PAGE = (Path(__file__).parent.parent / "docs" / "schedules.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def test_the_sql_blocks_run_in_order(db: psycopg.Connection[Any]) -> None:
    make, look, act = blocks("sql")
    run(db, make)
    (rows,) = run(db, look)
    assert [(row["name"], row["timezone"], row["enabled"]) for row in rows] == [
        ("daily", "Europe/Berlin", True), ("often", "UTC", True),
    ]  # fmt: skip
    run(db, act)
    (rows,) = run(db, look)
    assert [row["name"] for row in rows] == ["often"]
    assert db.execute("select message from pgmq.q_reports").fetchall() == [({"report": "sales"},)]


def test_the_commands_run_in_order(dsn: str) -> None:
    (block,) = blocks("sh")
    program = Program(DATABASE_URL=dsn)
    answers = [program.ok(*shlex.split(line, comments=True)[1:]).out for line in block.splitlines()]
    assert len(answers[1].splitlines()) == 6
    assert [row["name"] for row in program.ok("schedule", "list", "--json").json] == ["often"]


def test_the_app_has_the_schedules_of_the_page() -> None:
    (block,) = blocks("python")
    names: dict[str, Any] = {}
    exec(block, names)
    assert {name: one.cron for name, one in names["app"].schedules.items()} == {
        "sales": "0 9 * * 1-5", "sales.often": "every 10 minutes",
    }  # fmt: skip


@pytest.mark.parametrize("text", re.findall(r"`([^`]+)`", PAGE.split("| `cron` | |")[1].split("\n\n")[0]))
def test_the_cron_texts_of_the_page_are_understood(text: str) -> None:
    parse(text)
