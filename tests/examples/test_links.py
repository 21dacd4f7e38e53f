"""The READMEs of the examples: short, and their links lead to files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pages import ROOT

READMES = sorted(path.relative_to(ROOT) for path in (ROOT / "examples").glob("*/README.md"))


@pytest.mark.parametrize("page", READMES, ids=str)
def test_the_page_is_short_and_every_link_leads_to_a_file(page: Path) -> None:
    text = (ROOT / page).read_text()
    assert len(text.splitlines()) <= 100
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / page.parent / link).exists()] == []
