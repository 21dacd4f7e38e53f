"""The guides run from top to bottom, each in a folder and a database of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import ROOT, Reader

GUIDES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *(ROOT / "docs" / "from").glob("*.md"),
        *(ROOT / "docs" / f"{name}.md" for name in ("handbook", "troubleshooting", "checklists", "backup", "recipes")),
    )
    if path.exists()
)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", GUIDES)
def test_the_guide_runs_and_prints_what_it_shows(page: str, dsn: str, tmp_path: Path) -> None:
    assert Reader(tmp_path, dsn).read(ROOT / page) > 0
