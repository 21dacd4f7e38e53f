"""What the README shows is run here: its shell blocks in order, and their output compared with what it prints."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker import embedded
from queue_worker.testing import run
from tests.blackbox import forks
from tests.pages import ROOT, Block, blocks, normal

BLOCKS = blocks(ROOT / "README.md")


def test_the_first_block_of_commands_is_the_two_that_do_all_the_setup() -> None:
    commands = next(block.text for block in BLOCKS if block.kind == "sh")
    assert [line.split("#")[0].strip() for line in commands.splitlines()] == ["make demo", "make test"]


def test_python_blocks_run_as_one_program() -> None:
    # A real module's name: pydantic and typing look annotations up in it.
    names: dict[str, Any] = {"__name__": __name__}
    for block in BLOCKS:
        if block.kind == "python":
            exec(compile(block.text, "README.md", "exec", dont_inherit=True), names)
    done = run(names["signup"], {"user_id": 7})
    assert done.settled
    assert [(one.statement, one.params) for one in done.statements] == [
        ("update users set welcomed = true where id = %s", [7])
    ]


@pytest.fixture
def shell(tmp_path: Path):
    """Run a script in a fresh folder with `queue-worker` on the path and the README's jobs.py in place."""
    (tmp_path / "bin").mkdir()
    forks.script(tmp_path / "bin" / "queue-worker")
    project = tmp_path / "project"
    project.mkdir()
    for block in BLOCKS:
        if block.kind == "python" and block.note:
            (project / block.note).write_text(block.text)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "QUEUE_WORKER_EMBEDDED": "1",
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }

    def run(text: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=project,
            env=environment,
            timeout=100,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    yield run
    embedded.stop(project / ".queue-worker", delete=True)


def test_shell_blocks_run_in_order_and_print_what_the_readme_shows(shell) -> None:
    compared = 0
    for block, after in zip(BLOCKS, [*BLOCKS[1:], Block("", "", "", 0)], strict=True):
        if block.kind != "sh" or block.note:
            continue
        output = normal(shell(block.text))
        if after.kind == "text":
            compared += 1
            shown = normal(after.text)
            missing = [line for line in shown if line not in output]
            assert not missing, f"the README shows {missing}, seen was {output}"
    assert compared == 2


def test_sql_blocks_run(db: psycopg.Connection[tuple]) -> None:
    db.execute("select queue_worker.create_queue('welcome'); create table public.users (id int)")
    for block in BLOCKS:
        if block.kind == "sql":
            db.execute(block.text)
    assert db.execute("select count(*) from pgmq.q_welcome").fetchone() == (2,)
