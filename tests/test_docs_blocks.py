"""Every block of every page is run by some test, is data that parses, or says why it is not run.

`RUN_BY` tells which test runs which kind of block, `text` being output that is compared. Pages for the reader of
tests/pages.py are run whole: the guides (tests/test_docs_guides.py), `READ`, and the READMEs of the examples.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pages import ROOT, Block, Reader, blocks, check_data
from tests.test_docs_guides import GUIDES

RUN_BY = {
    "README.md": {
        "sh": "test_readme", "python": "test_readme", "sql": "test_readme", "text": "test_readme",
        "text: the demo": "blackbox/test_demo",
    },
    "docs/alerts.md": {"sh": "test_docs_alerts", "json": "test_docs_alerts", "sql": "test_docs_alerts"},
    "docs/connections.md": {"python": "supabase/test_docs_supabase", "sql": "supabase/test_docs_supabase"},
    "docs/deployment.md": {"sh": "blackbox/test_docs_deployment", "text": "blackbox/test_docs_deployment"},
    "docs/doctor.md": dict.fromkeys(("sh", "sql", "text"), "supabase/test_docs_supabase"),
    "docs/handlers.md": {"python": "test_docs_pages", "python: failures, payloads": "test_docs_handlers"},
    "docs/http.md": dict.fromkeys(("sh", "json", "python"), "api/test_docs_http"),
    "docs/limits.md": {"sh": "test_docs_pages", "sql": "test_docs_pages"},
    "docs/metrics.md": {"python": "test_docs_metrics", "yaml": "api/test_monitoring"},
    "docs/operations.md": {"sh": "test_docs_operations", "sql": "test_docs_operations"},
    "docs/processors.md": {
        "json": "test_docs_pages", "sh": "test_docs_pages", "sh: commands": "processors/test_payments_cli",
        "python": "processors/test_payments_webhook",
    },
    "docs/producing.md": {"python": "producers/test_docs_producing"},
    "docs/schedules.md": dict.fromkeys(("sh", "sql", "python"), "test_docs_schedules"),
    "docs/security.md": {"sh": "supabase/test_docs_supabase", "sql": "supabase/test_docs_supabase"},
    "docs/sql.md": {"sql": "test_docs_sql"},
    "docs/supabase-producing.md": dict.fromkeys(("js", "python", "sql"), "supabase/test_producing"),
    "docs/supabase.md": {"sh": "supabase/test_docs_supabase", "text": "supabase/test_docs_supabase"},
    "docs/testing.md": {"python": "test_docs_testing"},
}  # fmt: skip
"""Page -> kind of block -> module of tests/ that runs those; behind a colon, which of them where two modules share."""

READ = ("docs/kubernetes.md", "docs/scaling.md", "docs/versioning.md")
"""Pages that nothing but the test below runs."""

PICTURES = {"README.md": "trigger, SQL, Python, HTTP"}
"""Pages with a `text` block that is a picture, not output, and words of it."""

PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md")),
    )
]  # fmt: skip


def read_whole(page: str) -> bool:
    """Whether the reader of tests/pages.py runs the page; what it cannot run or parse fails there."""
    return page in GUIDES or page in READ or page.startswith("examples/")


def kinds_of(page: str) -> set[str]:
    return {key.partition(":")[0] for key in RUN_BY.get(page, {})}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_parses_or_says_why_not(page: str) -> None:
    for block in blocks(ROOT / page):
        where = f"{page}:{block.line}"
        if block.skipped:
            assert re.fullmatch(r"not-run: \S.{9,}", block.note), f"{where}: {block.note!r} is no reason"
        elif not read_whole(page) and block.kind not in kinds_of(page):
            assert not is_code(page, block), f"{where}: no test runs it: a line in RUN_BY or READ, or `not-run: reason`"


def is_code(page: str, block: Block) -> bool:
    """Whether a block is more than data that parses or a picture; fails for data that does not parse."""
    if block.kind == "text":
        return PICTURES.get(page, "\0") not in block.text
    if block.kind not in ("json", "yaml", "toml"):
        return True
    check_data(block, page)
    return False


@pytest.mark.parametrize("page", RUN_BY)
def test_each_test_in_the_table_is_there_and_reads_the_page_and_each_kind_stands_on_the_page(page: str) -> None:
    assert not read_whole(page)
    found = {block.kind for block in blocks(ROOT / page) if not block.skipped}
    assert kinds_of(page) <= found
    for module in set(RUN_BY[page].values()):
        text = (ROOT / "tests" / f"{module}.py").read_text()
        assert f'"{Path(page).name}"' in text, f"{module} does not read {page}"


def test_each_example_has_a_test_that_reads_its_page() -> None:
    for page in PAGES:
        if page.startswith("examples/"):
            test = ROOT / "tests" / "examples" / f"test_{Path(page).parent.name}.py"
            assert re.search(r"\bREADME\b|\bread\(", test.read_text()), page


@pytest.mark.parametrize("page", READ)
def test_the_page_runs_and_prints_what_it_shows(page: str, dsn: str, tmp_path: Path) -> None:
    reader = Reader(tmp_path, dsn)
    assert reader.read(ROOT / page) > 0
    assert reader.shown == sum(block.kind == "text" for block in blocks(ROOT / page))
