"""Each format opened by a program of its own kind, and its values compared with those in the database."""

from __future__ import annotations

import csv
import io
from datetime import datetime, time
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openpyxl
import pytest
from pypdf import PdfReader

from queue_worker.errors import Reject
from queue_worker.processors.reports import ReportsConfig, make_processor
from queue_worker.storage import LocalStorage

if TYPE_CHECKING:
    from tests.processors.report_context import Desk

pytest_plugins = ["report_fixtures"]


NAMES = ["Иванов Пётр, ёж", "王小明 销售额", "홍길동 매출액"]
COLUMNS = (
    "имя text, amount numeric, n int, big bigint, ratio double precision, ok boolean, day date, at timestamptz,"
    " wall timestamp, clock time, note text"
)
BODY = (
    "select name, amount, n, big, ratio, ok, day, at, wall, clock, note from (values"
    " (1, 'Иванов Пётр, ёж', -1234.50, -7, 9007199254740993, -0.5::float8, true, date '2026-02-28',"
    "  timestamptz '2026-01-02 03:04:05+02', timestamp '2026-01-02 03:04:05.5', time '23:59', '=1+1'),"
    " (2, '王小明 销售额', 0.10, 0, 12, 2.5, false, date '1812-06-24', null, null, null, null),"
    " (3, '홍길동 매출액', 12345678901234567890.12, 7, 13, null, null, null, null, null, null, E'two\\nlines, \"q\"')"
    ") as v (row, name, amount, n, big, ratio, ok, day, at, wall, clock, note) order by row"
)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "files")


def make(desk: Desk, storage: LocalStorage, name: str, **payload: Any) -> bytes:
    desk.function(COLUMNS, BODY)
    error = desk.make(storage, name, title="Отчёт 报告 보고서", **payload)
    assert error is None, error
    return storage.read(f"out/sales.{name}")


def wall(text: str) -> datetime:
    """Return a time without a zone, as a sheet has it."""
    return datetime.fromisoformat(text)


def test_csv(reports_desk: Desk, storage: LocalStorage) -> None:
    content = make(reports_desk, storage, "csv")
    assert content.startswith(b"\xef\xbb\xbf"), "without the mark Excel garbles all but Latin letters"
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    assert rows == [
        ["имя", "amount", "n", "big", "ratio", "ok", "day", "at", "wall", "clock", "note"],
        [
            NAMES[0], "-1234.50", "-7", "9007199254740993", "-0.5", "true", "2026-02-28", "2026-01-02 01:04:05+00:00",
            "2026-01-02 03:04:05.500000", "23:59:00", "'=1+1",
        ],
        [NAMES[1], "0.10", "0", "12", "2.5", "false", "1812-06-24", "", "", "", ""],
        [NAMES[2], "12345678901234567890.12", "7", "13", "", "", "", "", "", "", 'two\nlines, "q"'],
    ]  # fmt: skip


def test_xlsx(reports_desk: Desk, storage: LocalStorage) -> None:
    book = openpyxl.load_workbook(io.BytesIO(make(reports_desk, storage, "xlsx")))
    assert book.properties.title == "Отчёт 报告 보고서"
    (sheet,) = book.worksheets
    assert sheet.title == "sales"
    assert sheet.freeze_panes == "A2"
    rows = [[cell.value for cell in row] for row in sheet.iter_rows()]
    assert rows[0] == ["имя", "amount", "n", "big", "ratio", "ok", "day", "at", "wall", "clock", "note"]
    assert rows[1] == [
        NAMES[0], -1234.5, -7, "9007199254740993", -0.5, True, wall("2026-02-28"), wall("2026-01-02 01:04:05"),
        wall("2026-01-02 03:04:05.5"), time(23, 59), "=1+1",
    ]  # fmt: skip
    assert rows[2] == [NAMES[1], 0.1, 0, 12, 2.5, False, "1812-06-24", None, None, None, None]
    assert rows[3] == [NAMES[2], "12345678901234567890.12", 7, 13, *[None] * 6, 'two\nlines, "q"']
    kinds = [cell.data_type for cell in sheet[2]]
    assert kinds == ["s", "n", "n", "s", "n", "b", "d", "d", "d", "d", "s"]


class Cells(HTMLParser):
    """Collects the cells of a table, the tags, and whatever would load something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.text = ""
        self.inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [name for name, _ in attrs if name in ("src", "href", "srcset", "onerror", "onload")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.inside:
            self.rows[-1][-1] += data


def test_html(reports_desk: Desk, storage: LocalStorage) -> None:
    html = make(reports_desk, storage, "html").decode()
    page = Cells(html)
    assert page.rows[0][0] == "имя"
    assert page.rows[1] == [
        NAMES[0], "-1234.50", "-7", "9007199254740993", "-0.5", "true", "2026-02-28", "2026-01-02 01:04:05+00:00",
        "2026-01-02 03:04:05.500000", "23:59:00", "=1+1",
    ]  # fmt: skip
    assert [row[0] for row in page.rows[1:]] == NAMES
    assert page.rows[3][-1] == 'two\nlines, "q"'
    assert "<title>Отчёт 报告 보고서</title>" in html
    assert "<h1>Отчёт 报告 보고서</h1>" in html
    assert page.loads == []


def test_markup_and_template_source_in_the_data_are_text(reports_desk: Desk, storage: LocalStorage) -> None:
    hostile = [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "{{ 7*7 }}",
        "{{ ''.__class__ }}",
        "{% raw %}",
    ]
    reports_desk.function("t text", "select jsonb_array_elements_text(params->'texts')")
    assert reports_desk.make(storage, "html", title=hostile[1], params={"texts": hostile}) is None
    page = Cells(storage.read("out/sales.html").decode())
    assert page.rows[1:] == [[text] for text in hostile]
    assert hostile[1] in page.text
    assert not page.tags & {"script", "img"}


def test_pdf(reports_desk: Desk, storage: LocalStorage) -> None:
    reader = PdfReader(io.BytesIO(make(reports_desk, storage, "pdf")))
    text = "\n".join(page.extract_text() for page in reader.pages)
    assert reader.metadata is not None
    assert reader.metadata.title == "Отчёт 报告 보고서"
    for part in (
        "Отчёт 报告 보고서",
        *NAMES,
        "-1234.50",
        "12345678901234567890.12",
        "1812-06-24",
        "=1+1",
        'lines, "q"',
    ):
        assert part in text, (part, text)


def test_times_are_shown_in_the_configured_zone(reports_desk: Desk, storage: LocalStorage) -> None:
    reports_desk.function("at timestamptz", "select timestamptz '2026-07-01 10:00+00'")
    config = ReportsConfig({"sales": "public.sales"}, timezone="Asia/Seoul", csv_delimiter=";")
    request = {"report": "sales", "key": "out/sales", "formats": ["csv", "xlsx"]}
    assert reports_desk.run(make_processor(config, storage), reports_desk.send(request)) is None
    assert "2026-07-01 19:00:00+09:00" in storage.read("out/sales.csv").decode("utf-8-sig")
    book = openpyxl.load_workbook(io.BytesIO(storage.read("out/sales.xlsx")))
    assert book.worksheets[0]["A2"].value == wall("2026-07-01 19:00")


def test_values_that_python_has_no_type_for_stay_text(reports_desk: Desk, storage: LocalStorage) -> None:
    reports_desk.function(
        "a date, b timestamptz, c numeric, d double precision, e date, f interval, g jsonb, h int[]",
        "select date 'infinity', timestamptz '-infinity', numeric 'NaN', float8 '-Infinity', date '0044-03-15 BC',"
        " interval '1 day 2 hours', jsonb '{\"a\": [1]}', array[1, 2]",
    )
    assert reports_desk.make(storage, "csv", "xlsx", "html", "pdf") is None
    rows = list(csv.reader(io.StringIO(storage.read("out/sales.csv").decode("utf-8-sig"), newline="")))
    assert rows[1] == [
        "infinity", "'-infinity", "NaN", "'-Infinity", "0044-03-15 BC", "1 day 02:00:00", '{"a": [1]}', "[1,2]",
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------- templates


def with_templates(desk: Desk, storage: LocalStorage, folder: Path) -> BaseException | None:
    desk.function("n int", "select g from generate_series(1, 3) g")
    config = ReportsConfig({"sales": "public.sales"}, templates_dir=folder)
    request = {"report": "sales", "key": "out/sales", "format": "html", "title": "A & B"}
    return desk.run(make_processor(config, storage), desk.send(request))


def test_a_template_of_the_reports_name_is_used(reports_desk: Desk, storage: LocalStorage, tmp_path: Path) -> None:
    source = "{{ report }}|{{ title }}|{{ columns|join }}|{% for row in rows %}{{ row[0] * 2 }},{% endfor %}"
    (tmp_path / "sales.html").write_text(source)
    assert with_templates(reports_desk, storage, tmp_path) is None
    assert storage.read("out/sales.html") == b"sales|A &amp; B|n|2,4,6,"


def test_without_a_template_the_built_in_one_is_used(reports_desk: Desk, storage: LocalStorage, tmp_path: Path) -> None:
    assert with_templates(reports_desk, storage, tmp_path) is None
    assert b"<h1>A &amp; B</h1>" in storage.read("out/sales.html")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ nothing }}", "'nothing' is undefined"),
        ("a\n{% for %}", "template sales.html, line 2"),
        ("{{ ''.__class__.__mro__ }}", "the template failed"),
        ("{{ rows.clear() }}", "the template failed"),
        ("{{ title + 1 }}", "the template failed"),
        ("{{ columns[9] + 'x' }}", "the template failed"),
        ("{% include '../secret.html' %}", "template not found"),
        ("{% include '/etc/passwd' %}", "template not found"),
    ],
)
def test_a_faulty_or_prying_template_is_rejected(
    reports_desk: Desk, storage: LocalStorage, tmp_path: Path, source: str, text: str
) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    (tmp_path / "secret.html").write_text("secret")
    (folder / "sales.html").write_text(source)
    error = with_templates(reports_desk, storage, folder)
    assert isinstance(error, Reject)
    assert text in error.reason
    assert not (tmp_path / "files" / "out" / "sales.html").exists()
