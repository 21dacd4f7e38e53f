"""Every command and every SQL block of docs/operations.md runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker.cli import program

PAGE = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
BLOCKS = re.findall(r"```(sh|sql)\n(.*?)```", PAGE, re.S)


def test_everything_on_the_page_runs_in_order(
    dsn: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)
    db.execute("select queue_worker.create_queue('email')")
    assert len(BLOCKS) > 6
    for language, text in BLOCKS:
        if language == "sql":
            db.execute(text)
            continue
        for line in text.splitlines():
            _, *words = shlex.split(line)
            assert program.run(words) == 0, f"{line}: {capsys.readouterr().err}"
    said = capsys.readouterr().out
    assert "1 cancelled" in said
    assert "queue 'parcels' is gone" in said
    assert "nothing is wrong" in said
