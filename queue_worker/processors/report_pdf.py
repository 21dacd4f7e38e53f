"""PDF through fpdf2: drawn from the rows themselves, never from HTML, so nothing is ever fetched.

Every letter comes from an embedded font (see report_fonts), so the text can be searched and copied in any script.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fpdf import FPDF, FontFace
from fpdf.enums import Align, MethodReturnValue, TableCellFillMode

from queue_worker.errors import Reject
from queue_worker.processors.report_fonts import PLACEHOLDER, MissingFont, prepare
from queue_worker.processors.report_rows import Table, show

MAX_COLUMNS = 30
"""More columns cannot be read on a page of A4."""
_MARGIN = 12.0  # mm
_NARROWEST = 8.0  # mm, a column
_LINES = 25  # lines of one row on a page, less than any page has
_SAMPLE = 200  # rows whose texts set the widths
_ASCII = {chr(code) for code in range(0x20, 0x7F)}
# Texts below this length cannot fill _LINES lines: the narrowest column takes two letters a line.
_SHORT = 2 * _LINES


def render(table: Table, path: Path, *, max_rows: int, fonts: Sequence[str] = ()) -> None:
    """Write `table` to `path`.

    `fonts` are font files to prefer. Raises Reject for more than `max_rows` rows or MAX_COLUMNS columns and for a
    letter that no font draws, and OSError.
    """
    for count, limit, what in ((len(table.rows), max_rows, "rows"), (len(table.columns), MAX_COLUMNS, "columns")):
        if count > limit:
            raise Reject(f"report {table.report!r}: {count} {what}, a pdf takes {limit} at most: use csv or xlsx")
    texts = [[clean(show(value)) for value in row] for row in table.rows]
    heads = [clean(name) for name in table.columns]
    title = clean(table.title)
    characters = _ASCII.union(title, *heads, *(text for row in texts for text in row)) - {"\n"}
    try:
        files, unknown = prepare(characters, fonts, path.parent)
    except MissingFont as error:
        raise Reject(f"report {table.report!r} as pdf: {error}") from error
    if unknown:
        signs = dict.fromkeys(map(ord, unknown), PLACEHOLDER)
        title = title.translate(signs)
        heads = [name.translate(signs) for name in heads]
        texts = [[text.translate(signs) for text in row] for row in texts]
    page = _Page(len(heads), files)
    page.set_title(table.title)
    page.set_creation_date(table.made_at)
    page.head(title, table.made_at.strftime("%Y-%m-%d %H:%M %Z"))
    if heads:
        page.body(heads, texts, table.numeric)
    page.output(str(path))


def clean(text: str) -> str:
    """Return `text` composed (NFC) and without control and formatting characters; tabs become blanks, line ends LF."""
    if text.isascii() and text.isprintable():
        return text
    text = re.sub("\r\n?|[\u2028\u2029\x85]", "\n", unicodedata.normalize("NFC", text)).replace("\t", "    ")
    return "".join(filter(None, map(_visible, text)))


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Zs":
        return " "
    selector = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    return "" if selector or (category in ("Cc", "Cf") and character != "\n") else character


class _Page(FPDF):
    """A4 with the page's number below; many columns turn it on its side and make the letters smaller."""

    def __init__(self, columns: int, files: Sequence[Path]) -> None:
        super().__init__(orientation="landscape" if columns > 5 else "portrait", format="A4")
        self.set_margin(_MARGIN)
        self.set_auto_page_break(True, _MARGIN + 4)
        names = [f"font{index}" for index in range(len(files))]
        for name, file in zip(names, files, strict=True):
            self.add_font(name, fname=str(file))
        self._size = 9.0 if columns <= 8 else 7.5 if columns <= 14 else 6.0
        self.set_font(names[0], size=self._size)
        self.set_fallback_fonts(names[1:])
        self.add_page()

    def footer(self) -> None:
        self.set_y(-_MARGIN)
        self.set_font_size(7)
        self.cell(0, 4, f"{self.page_no()} / {{nb}}", align="C")

    def head(self, title: str, made: str) -> None:
        self.set_font_size(15)
        self.multi_cell(0, 7, title, align="L", new_x="LMARGIN", new_y="NEXT")
        self.set_font_size(8)
        self.set_text_color(90)
        self.cell(0, 5, made, new_x="LMARGIN", new_y="NEXT")
        self.set_text_color(0)
        self.set_font_size(self._size)
        self.ln(3)

    def body(self, heads: list[str], texts: list[list[str]], numeric: Sequence[bool]) -> None:
        widths = self._widths(heads, texts)
        self.set_draw_color(190)
        self.set_line_width(0.15)
        with self.table(
            col_widths=widths,
            v_align="TOP",
            text_align=tuple(Align.R if flag else Align.L for flag in numeric),
            headings_style=FontFace(fill_color=(232, 237, 243)),
            line_height=self.font_size * 1.35,
            padding=(0.8, 1.2),
            borders_layout="HORIZONTAL_LINES",
            cell_fill_color=(248, 250, 252),
            cell_fill_mode=TableCellFillMode.EVEN_ROWS,
        ) as table:
            table.row(heads)
            for row in texts:
                for part in self._parts(row, widths):
                    table.row(part)

    def _widths(self, heads: list[str], texts: list[list[str]]) -> list[float]:
        """Return the columns' widths in mm: a least one for each, the rest shared out by the length of the texts."""
        longest = [
            min(max(3, _width(head), *(_width(row[index]) for row in texts[:_SAMPLE])), 40)
            for index, head in enumerate(heads)
        ]
        rest = self.epw - _NARROWEST * len(heads)
        return [_NARROWEST + rest * length / sum(longest) for length in longest]

    def _parts(self, row: list[str], widths: list[float]) -> Iterator[list[str]]:
        """Split a row that is higher than a page into several rows."""
        if all(len(text) <= _SHORT and text.count("\n") < _LINES for text in row):
            yield row
            return
        columns = [self._chunks(text, width) for text, width in zip(row, widths, strict=True)]
        for index in range(max(map(len, columns))):
            yield [chunks[index] if index < len(chunks) else "" for chunks in columns]

    def _chunks(self, text: str, width: float) -> list[str]:
        if len(text) <= _SHORT and text.count("\n") < _LINES:
            return [text]
        lines: Any = self.multi_cell(width - 2.4, text=text, align="L", dry_run=True, output=MethodReturnValue.LINES)
        return ["\n".join(lines[start : start + _LINES]) for start in range(0, len(lines), _LINES)]


def _width(text: str) -> int:
    line = max(text[:200].split("\n"), key=len)
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)
