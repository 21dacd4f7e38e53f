"""What all pages have in common: links that lead somewhere, commands and options that exist, tables that leave nothing
out. And the blocks of those pages that have no test of their own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer

from queue_worker import app as app_module
from queue_worker.cli import program
from queue_worker.cli.common import root
from queue_worker.config import load_settings
from queue_worker.config_options import CODE_OPTIONS, DECORATOR_OPTIONS
from tests import pages

ROOT = Path(__file__).parent.parent
FILES = {
    path.relative_to(ROOT).as_posix().removeprefix("docs/"): path
    for path in (
        *ROOT.glob("*.md"),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "examples").glob("*/README.md")),
    )
}
PAGES = {name: path.read_text() for name, path in FILES.items()}
PROGRAM: Any = typer.main.get_command(root)


def blocks(page: str, language: str) -> list[str]:
    return [block.text for block in pages.blocks(FILES[page]) if block.kind == language]


def anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        target = FILES[page].parent / name if name else FILES[page]
        assert target.exists(), link
        if heading and target.suffix == ".md":
            text = re.sub(r"^```.*?^```", "", target.read_text(), flags=re.S | re.M)
            assert heading in map(anchor, re.findall(r"^#+ (.+)$", text, re.M)), link


def test_the_readme_lists_every_page_and_example_once() -> None:
    listed = re.findall(r"\]\((?:docs/)?(\S+?)\)", PAGES["README.md"].split("\n## Examples")[1])
    assert sorted(listed) == sorted(PAGES.keys() - {"README.md"})


def commands(page: str) -> list[str]:
    """The command lines of a page, without the program's name: those of its blocks, and those within sentences."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    spans = re.findall(r"`(queue-worker [^`]+)`", re.sub(r"^ *```.*?^ *```", "", PAGES[page], flags=re.S | re.M))
    return [
        line.split(" #")[0].removeprefix("queue-worker ") for line in (*lines, *spans) if line[:13] == "queue-worker "
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_exists(page: str) -> None:
    for line in commands(page):
        command = PROGRAM
        words = line.split()
        while words and hasattr(command, "commands") and not words[0].startswith("-"):
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        asked = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", " ".join(words)))
        assert asked <= known | {"--help"}, line


def test_the_readme_knows_every_command() -> None:
    operating = PAGES["README.md"].split("## Operating")[1].split("\n## ")[0]
    missing = [name for name in PROGRAM.commands if not re.search(rf"`(queue-worker )?{name}\b", operating)]
    assert missing == []


def test_the_page_of_handlers_lists_every_option_of_the_decorator() -> None:
    table = PAGES["handlers.md"].split("## Options of `@app.processor`")[1].split("\n## ")[0]
    own = app_module.App.processor.__kwdefaults__
    wanted = {*DECORATOR_OPTIONS, *CODE_OPTIONS, *own, "batch", "isolation"}
    assert [name for name in sorted(wanted) if f"`{name}`" not in table] == []


def test_limits_runs_in_order(
    db: psycopg.Connection[Any], dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)
    found = re.findall(r"^```(sql|sh)\n(.*?)^```", PAGES["limits.md"], re.S | re.M)
    assert len(found) >= 6
    for language, text in found:
        if language == "sql":
            db.execute(text)
        else:
            assert program.run(text.split()[1:]) == 0
    assert "at most 100 starts in 1 s; at most 4 at a time in all workers" in capsys.readouterr().out
    assert db.execute("select per_group from queue_worker.queues where queue = 'orders'").fetchone() == (3,)


def test_the_first_blocks_of_handlers_are_a_program() -> None:
    page = PAGES["handlers.md"]
    names: dict[str, Any] = {"__name__": __name__}
    for block in re.findall(r"```python\n(.*?)```", page[: page.index("## When it fails")], re.S):
        exec(compile(block, "handlers.md", "exec", dont_inherit=True), names)
    assert set(names["app"].processors) >= {"resize", "fetch", "index"}


def test_the_blocks_of_processors_are_payloads_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for block in blocks("processors.md", "json"):
        rest = block.strip()
        while rest:
            value, end = json.JSONDecoder().raw_decode(rest)
            assert isinstance(value, dict)
            rest = rest[end:].strip()
    lines = [line for block in blocks("processors.md", "sh") for line in block.splitlines()]
    for name, value in [line.split("=", 1) for line in lines if re.match(r"[A-Z_]+=", line)]:
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert (settings.email_provider, settings.smtp_from_email) == ("resend", "hello@example.com")
    assert settings.resend_api_key is not None
    assert set(settings.reports_allowed) == {"sales", "stock"}
