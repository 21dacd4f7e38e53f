"""The fenced blocks of a page, and a reader who types them in, one after the other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import psycopg
import yaml

from tests.blackbox import forks

ROOT = Path(__file__).parent.parent
_FENCE = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^ *```", re.S | re.M)
_PARSERS = {"json": json.loads, "yaml": lambda text: list(yaml.safe_load_all(text)), "toml": tomllib.loads}

RUN = ("sh", "sql", "python")
"""What is run. Every other language is a file, or data that must parse, or says why it is neither."""


class Block(NamedTuple):
    """One fenced block: its language, what stands behind it (a file's name, or `not-run: reason`), and its text."""

    kind: str
    note: str
    text: str
    line: int

    @property
    def skipped(self) -> bool:
        """Whether the page says that nobody runs it."""
        return self.note.startswith("not-run: ")


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that have a language, in order."""
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        indent, kind, note, body = match.groups()
        if indent:
            body = re.sub(f"^{indent}", "", body, flags=re.M)
        found.append(Block(kind, note.strip(), body, text.count("\n", 0, match.start()) + 1))
    return found


def normal(text: str) -> list[str]:
    """Lines without what differs from run to run, sorted: threads may change places."""
    text = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(\+00(:00)?)?", "TIME", text)
    text = re.sub(r"worker=\S+", "worker=W", text)
    text = re.sub(r"seconds=\S+", "seconds=N", text)
    return sorted(line.rstrip() for line in text.splitlines() if line.strip() and line.strip() != "...")


class Reader:
    """Types a page in, in a folder of its own, with `queue-worker` on the path and a database that has the schema.

    A block with a file's name is written down under it. `sh` goes to bash, `python` is a program of its own, `sql` runs
    in the database. What a `text` block shows must be among the lines that the `sh` block before it printed.
    """

    def __init__(self, folder: Path, dsn: str, **environment: str) -> None:
        tools = folder / "bin"
        tools.mkdir(parents=True)
        forks.script(tools / "queue-worker")
        for name in ("python", "python3"):
            # A script: an interpreter that is started by a link does not find its virtual environment.
            script = tools / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
            script.chmod(0o755)
        self.folder = folder / "project"
        self.folder.mkdir()
        self.dsn = dsn
        self.shown = 0
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        self.environment = {
            **kept,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": f"{self.folder}:{ROOT}",
            "DATABASE_URL": dsn,
            "NO_COLOR": "1",
            "COLUMNS": "200",
            **environment,
        }

    def read(self, page: Path) -> int:
        """Run the whole page; returns how many blocks were run."""
        ran, printed = 0, ""
        for block in blocks(page):
            where = f"{page.name}:{block.line}"
            if block.skipped:
                printed = ""
            elif block.kind == "text":
                if printed:
                    self._compare(block, printed, where)
            elif block.note:
                self._file(block, where)
            elif block.kind in RUN:
                printed = self._run(block, where)
                ran += 1
            else:
                check_data(block, where)
        return ran

    def _compare(self, block: Block, printed: str, where: str) -> None:
        seen = normal(printed)
        missing = [line for line in normal(block.text) if line not in seen]
        assert not missing, f"{where} shows {missing}, seen was {printed}"
        self.shown += 1

    def _file(self, block: Block, where: str) -> None:
        assert re.fullmatch(r"[\w./-]+", block.note), f"{where}: {block.note!r} is neither a file's name nor not-run:"
        path = self.folder / block.note
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        path.chmod(0o600)

    def _run(self, block: Block, where: str) -> str:
        if block.kind == "sql":
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                try:
                    connection.execute(block.text.encode())
                except psycopg.Error as error:
                    raise AssertionError(f"{where}: {error}") from error
            return ""
        if block.kind == "sh":
            command = ["bash", "-euo", "pipefail", "-c", block.text]
        else:
            command = [sys.executable, "-c", block.text]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, timeout=100,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{where}: {done.stdout}"
        return done.stdout


def check_data(block: Block, where: str) -> None:
    """A block of data parses; one of another language says by `not-run:` why nobody reads it."""
    assert block.kind in _PARSERS, f"{where}: a block of {block.kind} wants a file's name or `not-run: reason`"
    try:
        _PARSERS[block.kind](block.text)
    except ValueError as error:
        raise AssertionError(f"{where}: {error}") from error
