"""The docs site: it builds without a warning, loads nothing from elsewhere, and leaves no page and no name out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import queue_worker
import queue_worker.testing
from queue_worker.config import QueueOptions, Settings, load_settings
from queue_worker.config_sources import variables

ROOT = Path(__file__).parent.parent
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
LOADED = r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>"
"""Elements that fetch something from another host."""


def pages_of(nav: Any) -> list[str]:
    """All pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for one in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(one)]


def names_of(module: Any) -> set[str]:
    """The anchors that the public names of a module may have: where it is imported from, or where it is defined."""
    public = [name for name in module.__all__ if not name.startswith("__")]
    homes = {name: getattr(module, name).__module__ for name in public}
    return {f"{module.__name__}.{name}|{homes[name]}.{name}" for name in public}


@pytest.mark.full
def test_the_site_builds_strictly_and_names_all_that_is_public(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}, timeout=110,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert {line.split()[0] for line in done.stdout.splitlines()} == {"INFO"}, done.stdout

    made = {path.relative_to(tmp_path / "site").as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    for page in pages_of(CONFIG["nav"]):
        assert page.replace("README.md", "index.md").replace(".md", ".html") in made
    for name, text in made.items():
        assert re.findall(LOADED, text) == [], name
        body = re.sub(r"<(pre|code)\b.*?</\1>", "", text, flags=re.S)
        assert "```" not in body, f"{name}: a fence that was not understood"
    anchors = set(re.findall(r'\bid="([^"]+)"', made["reference.html"]))
    wanted = names_of(queue_worker) | names_of(queue_worker.testing)
    assert [name for name in sorted(wanted) if anchors.isdisjoint(name.split("|"))] == []


def test_every_page_stands_in_the_navigation_once() -> None:
    listed = pages_of(CONFIG["nav"])
    assert len(listed) == len(set(listed))
    own = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in listed if not page.startswith("repository/")} == own


def test_the_page_of_settings_has_each_with_its_default_and_meaning() -> None:
    described = {variables(Settings)[name][0]: field.description for name, field in Settings.model_fields.items()} | {
        f"QUEUE_WORKER_{name.upper()}": field.description for name, field in QueueOptions.model_fields.items()
    }
    shown = re.findall(
        r"^\| `([A-Z_]+)` \|(?: `(.*?)`)? \| (.+) \|$", (ROOT / "docs" / "settings.md").read_text(), re.M
    )
    assert sorted(shown) == sorted((line.name, line.value, described[line.name]) for line in load_settings().explain())
