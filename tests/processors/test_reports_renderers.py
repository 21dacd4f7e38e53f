"""The renderers alone: formula injection, the limits of sheets, and pages of a PDF."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import noto_cjk_sans_otc
import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfReader

from queue_worker.errors import Reject
from queue_worker.processors import report_csv, report_pdf, report_xlsx
from queue_worker.processors.report_rows import Table, Value

TRIGGERS = "=+-@\t\r"
TEXTS = st.text(
    st.one_of(st.sampled_from(TRIGGERS + " '\"\n,;＝\ufeff"), st.characters(exclude_categories=["Cs"])), max_size=12
)


def table(rows: list[list[Value]], columns: tuple[str, ...] = ("a",), numeric: tuple[bool, ...] = (False,)) -> Table:
    return Table("sales", "Sales", columns, numeric, rows, datetime(2026, 1, 2, tzinfo=UTC))


@settings(deadline=None)
@given(st.lists(st.lists(TEXTS, min_size=2, max_size=2), max_size=5), st.sampled_from(",;\t|"))
def test_no_text_in_a_csv_begins_a_formula(rows: list[list[Value]], delimiter: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.csv")
        report_csv.render(table(rows, ("=a", "b")), path, delimiter=delimiter)
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = list(csv.reader(file, delimiter=delimiter))
    assert len(found) == len(rows) + 1
    for given_row, row in zip([("=a", "b"), *rows], found, strict=True):
        for value, cell in zip(given_row, row, strict=True):
            assert cell[:1] not in tuple(TRIGGERS)
            assert cell in (value, f"'{value}")
            if cell == value:
                bare = cell.lstrip(" '\"")
                assert bare[:1] not in tuple(TRIGGERS)


@settings(deadline=None)
@given(
    st.one_of(
        st.integers(),
        st.decimals(allow_nan=False, allow_infinity=False),
        st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_real_numbers_in_a_csv_stay_numbers(number: int | Decimal | float) -> None:
    text = report_csv.cell(number)
    assert not text.startswith("'")
    assert type(number)(text) == number


@pytest.mark.parametrize(
    "text", [*(f"{lead}{sign}1" for lead in ("", " ", '"', " '", "\n") for sign in "=+-@"), "\t1", "\r1"]
)
def test_every_known_beginning_of_a_formula_is_guarded(text: str) -> None:
    assert report_csv.guard(text) == f"'{text}"


@settings(deadline=None)
@given(st.lists(TEXTS.map(lambda text: text[:12]), min_size=1, max_size=5))
def test_a_sheet_has_texts_and_never_formulas_or_links(texts: list[str]) -> None:
    texts = [*texts, "=1+1", "{=1}", "@SUM(A1)", "https://example.com", "mailto:a@b.c", "file:///etc/passwd"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.xlsx")
        report_xlsx.render(table([[text] for text in texts]), path)
        sheet = openpyxl.load_workbook(path).worksheets[0]
        cells = [sheet.cell(row, 1) for row in range(2, len(texts) + 2)]
        assert {cell.data_type for cell in cells} == {"s"}
        assert all(cell.hyperlink is None for cell in cells)
        assert [cell.value for cell in cells[-6:]] == texts[-6:]


def test_what_a_sheet_cannot_hold_is_kept_as_text_or_cut_visibly(tmp_path: Path) -> None:
    values: list[Value] = [10**15 + 1, 10**20, Decimal("0.1234567890123456789"), date(1899, 12, 31), "x" * 40_000]
    report_xlsx.render(table([[value] for value in values]), tmp_path / "a.xlsx")
    sheet = openpyxl.load_workbook(tmp_path / "a.xlsx").worksheets[0]
    cells = [sheet.cell(row, 1).value for row in range(2, 7)]
    assert cells[:4] == ["1000000000000001", 10**20, "0.1234567890123456789", "1899-12-31"]
    assert len(cells[4]) == 32_767
    assert cells[4].endswith("[cut: a cell holds 32767 characters]")


@pytest.mark.parametrize("name", ["history", "x" * 64])
def test_names_that_excel_refuses_for_a_sheet_work(tmp_path: Path, name: str) -> None:
    report = Table(name, "t", ("a",), (False,), [["x"]], datetime(2026, 1, 2, tzinfo=UTC))
    report_xlsx.render(report, tmp_path / "a.xlsx")
    assert openpyxl.load_workbook(tmp_path / "a.xlsx").worksheets[0]["A2"].value == "x"


# ---------------------------------------------------------------------------------------------------- pdf


def pdf(tmp_path: Path, report: Table, **options: Any) -> Iterator[str]:
    report_pdf.render(report, tmp_path / "a.pdf", **{"max_rows": 1000, **options})
    yield from (page.extract_text() for page in PdfReader(tmp_path / "a.pdf").pages)


def test_a_row_higher_than_a_page_goes_on_on_the_next(tmp_path: Path) -> None:
    words = [f"слово{number}字" for number in range(3000)]
    pages = list(pdf(tmp_path, table([["short", " ".join(words)]], ("a", "b"), (False, False))))
    assert len(pages) > 1
    assert [word for page in pages for word in page.split() if word.startswith("слово")] == words


def test_the_heading_stands_on_every_page(tmp_path: Path) -> None:
    pages = list(pdf(tmp_path, table([[f"row {number}"] for number in range(120)], ("столбец",))))
    assert len(pages) > 1
    assert all("столбец" in page for page in pages)
    assert f"{len(pages)} / {len(pages)}" in pages[-1]


def test_thirty_columns_fit_and_more_are_rejected(tmp_path: Path) -> None:
    for count in (30, 31):
        row: list[Value] = ["x" * 50 if number % 2 else number for number in range(count)]
        report = table([row] * 3, tuple(f"column_{number}" for number in range(count)), (False,) * count)
        if count == 30:
            assert "x" in next(pdf(tmp_path, report))
        else:
            with pytest.raises(Reject, match="31 columns"):
                next(pdf(tmp_path, report))


def test_signs_without_a_font_become_boxes_and_controls_go(tmp_path: Path) -> None:
    text = "a\u0007b\u202ec\tИ\u0306 \U0001faf8\ufe0f end"
    (page,) = pdf(tmp_path, table([[text]]))
    assert "abc    Й □ end" in page or "abc Й □ end" in page


def test_a_letter_without_a_font_is_rejected_naming_the_extra(tmp_path: Path) -> None:
    with pytest.raises(Reject, match=r"U\+12000.*queue-worker\[pdf\]"):
        next(pdf(tmp_path, table([["cuneiform \U00012000"]])))


def test_a_named_font_is_preferred(tmp_path: Path) -> None:
    (page,) = pdf(tmp_path, table([["Привет 汉字 한국어"]]), fonts=(f"{noto_cjk_sans_otc.FONT_PATH}#1",))
    assert "Привет 汉字 한국어" in page
    fonts = PdfReader(tmp_path / "a.pdf").pages[0]["/Resources"]["/Font"].values()  # type: ignore[index]
    assert ["NotoSansCJKKR" in font.get_object()["/BaseFont"] for font in fonts] == [True]


def test_a_named_font_that_is_missing_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-such-font"):
        next(pdf(tmp_path, table([["a"]]), fonts=("no-such-font.ttf",)))
