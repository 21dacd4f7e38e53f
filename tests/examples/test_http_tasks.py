"""The example `http_tasks`: its README, which runs its command, and the rows that the command leaves."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import psycopg

from tests.pages import ROOT, Reader

EXAMPLE = ROOT / "examples" / "http_tasks"


def test_the_command_of_the_readme_prints_what_it_shows_and_leaves_its_rows(
    dsn: str, db: psycopg.Connection[Any], tmp_path: Path
) -> None:
    reader = Reader(tmp_path, dsn, EXAMPLE_DATABASE_URL=dsn, TMPDIR=str(tmp_path))
    assert reader.read(EXAMPLE / "README.md") == 1
    assert reader.shown == 1
    # Three processes have written READMEs and one of them the changelog, each message once.
    rows = db.execute("select queue, msg_id, split_part(text, E'\\n', 1) from public.documents order by id").fetchall()
    assert rows == [
        ("readme-queue", 1, "# Harbour"),
        ("readme-queue", 2, "# Lighthouse"),
        ("readme-queue", 3, "# Pier"),
        ("changelog-queue", 1, "# Changes of Harbour"),
    ]
    (processes,) = db.execute("select count(distinct process) from public.documents").fetchone() or (0,)
    assert processes == 3
    done = {"readme-queue": 3, "changelog-queue": 1}
    assert dict(db.execute("select queue, done from queue_worker.counters()").fetchall()) == done
    assert db.execute("select queue_name from pgmq.list_queues() order by 1").fetchall() == [(n,) for n in sorted(done)]
    # Nothing is left behind: no worker, no file.
    assert db.execute("select count(*) from queue_worker.workers where alive").fetchone() == (0,)
    assert list(reader.folder.iterdir()) == []
    assert list(tmp_path.glob("example-*")) == []


def test_a_queue_and_its_worker_take_fewer_than_fifteen_lines() -> None:
    text = (EXAMPLE / "added.py").read_text()
    assert len(text.splitlines()) < 15
    assert f"in {len(text.splitlines())} lines" in (EXAMPLE / "README.md").read_text()
    decorated = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    assert [ast.unparse(node.decorator_list[0].func) for node in decorated] == ["app.processor"]  # type: ignore[attr-defined]
