"""Fonts for PDF: finds what can draw a text and makes small TrueType files of just those letters.

Looked through in this order: the fonts that the configuration names, the package noto-cjk-sans-otc (extra `pdf`; Noto
Sans CJK, SIL Open Font License 1.1: Latin, Greek, Cyrillic, Chinese, Japanese and Korean in one file), and well-known
fonts of the system.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fontTools import subset  # type: ignore[import-untyped]
from fontTools.pens.cu2quPen import Cu2QuPen  # type: ignore[import-untyped]
from fontTools.pens.ttGlyphPen import TTGlyphPen  # type: ignore[import-untyped]
from fontTools.ttLib import TTFont, newTable  # type: ignore[import-untyped]
from fontTools.varLib import instancer  # type: ignore[import-untyped]

PLACEHOLDER = "□"
"""Drawn for a sign that no font has, such as an emoji."""

_PACKAGE = "noto_cjk_sans_otc"
_PACKAGE_FACE = "NotoSansCJK-Regular.ttc#2"  # the face for simplified Chinese; all faces draw all scripts
# Broad ones first: each font more makes the PDF larger and the text less even.
_SYSTEM_FONTS = (
    "NotoSansCJK-Regular.ttc#2", "NotoSansCJKsc-Regular.otf", "Arial Unicode.ttf", "DejaVuSans.ttf",
    "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "arial.ttf", "Arial.ttf", "wqy-microhei.ttc",
    "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "msyh.ttc", "simsun.ttc", "malgun.ttf",
    "NanumGothic.ttf", "UnDotum.ttf", "AppleSDGothicNeo.ttc", "Hiragino Sans GB.ttc", "unifont.ttf", "unifont.otf",
)  # fmt: skip
_UNITS = 1000  # curves are approximated to within one unit of about so many in the height of a letter


class MissingFont(Exception):
    """No font at hand draws a letter of the text; the message names the letter and the fix."""


def prepare(characters: set[str], named: Sequence[str], folder: Path) -> tuple[list[Path], set[str]]:
    """Return TrueType files, written to `folder`, which draw `characters` together, the best one first.

    `named` are files to prefer, `path` or `path#face` for a collection. The second answer holds signs that no font
    draws and that are no letters or digits; draw PLACEHOLDER instead. Raises MissingFont, and OSError for a font in
    `named` that cannot be read.
    """
    missing = {ord(character) for character in characters} | {ord(PLACEHOLDER)}
    fonts: list[Path] = []
    for path, face in _candidates(named):
        with TTFont(path, fontNumber=face, lazy=True) as font:
            drawn = missing & set(font.getBestCmap() or ())
            if drawn:
                target = folder / f"font{len(fonts)}.ttf"
                _subset(font, drawn, target)
                fonts.append(target)
                missing -= drawn
        if not missing:
            break
    letters = sorted(code for code in missing if unicodedata.category(chr(code))[0] in "LN")
    if letters or not fonts:
        raise MissingFont(_advice(letters))
    return fonts, {chr(code) for code in missing}


def _advice(letters: Sequence[int]) -> str:
    code = letters[0] if letters else ord("A")
    return (
        f"no font at hand draws {chr(code)!r} (U+{code:04X}): install the extra `pdf`"
        ' (pip install "queue-worker[pdf]") or a system font such as fonts-noto-cjk, or name a font file in the'
        " configuration of the reports"
    )


def _candidates(named: Iterable[str]) -> Iterator[tuple[Path, int]]:
    yield from (_split(name) for name in named)
    spec = find_spec(_PACKAGE)
    if spec is not None and spec.origin:
        yield _split(str(Path(spec.origin).parent / _PACKAGE_FACE))
    found = _installed({_split(name)[0].name for name in _SYSTEM_FONTS})
    for name in _SYSTEM_FONTS:
        path, face = _split(name)
        if path.name in found:
            yield found[path.name], face


def _split(name: str) -> tuple[Path, int]:
    path, mark, face = name.rpartition("#")
    return (Path(path), int(face)) if mark and face.isdigit() else (Path(name), 0)


def _installed(names: set[str]) -> dict[str, Path]:
    """Return where the wanted fonts lie in the folders that fontconfig, macOS and Windows use."""
    found: dict[str, Path] = {}
    for folder in _folders():
        for place, _, files in os.walk(folder):
            for name in names.intersection(files):
                found.setdefault(name, Path(place, name))
    return found


def _folders() -> list[Path]:
    if sys.platform == "win32":
        return [Path("C:/Windows/Fonts")]
    home = Path("~").expanduser()
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    return [home / ".local/share/fonts", home / ".fonts", Path("/usr/local/share/fonts"), Path("/usr/share/fonts")]


def _subset(font: TTFont, codes: set[int], target: Path) -> None:
    """Write a TrueType font with the given characters only.

    Always TrueType: with CFF outlines fpdf2 writes an encoding that pypdf and other readers cannot turn back to text.
    """
    options = subset.Options(
        layout_features=[], hinting=False, notdef_outline=True, glyph_names=False, name_IDs=["*"], legacy_kern=False
    )
    options.drop_tables += [
        "FFTM",
        "GSUB",
        "GPOS",
        "GDEF",
        "BASE",
        "vhea",
        "vmtx",
        "VORG",
        "SVG ",
        "COLR",
        "CBDT",
        "sbix",
    ]
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=codes)
    cutter.subset(font)
    if "fvar" in font:
        # Some families have their thinnest weight as the default.
        place = {axis.axisTag: 400 if axis.axisTag == "wght" else axis.defaultValue for axis in font["fvar"].axes}
        instancer.instantiateVariableFont(font, place, inplace=True)
    if "glyf" not in font:
        _to_truetype(font)
    font.save(target)


def _to_truetype(font: TTFont) -> None:
    """Turn the cubic curves of a CFF font into TrueType's quadratic ones."""
    glyphs: Any = font.getGlyphSet()
    order = font.getGlyphOrder()
    outlines = {}
    for name in order:
        pen = TTGlyphPen(glyphs)
        glyphs[name].draw(Cu2QuPen(pen, font["head"].unitsPerEm / _UNITS, reverse_direction=True))
        outlines[name] = pen.glyph()
    font["loca"] = newTable("loca")
    font["glyf"] = table = newTable("glyf")
    table.glyphOrder = order
    table.glyphs = outlines
    for tag in ("CFF ", "CFF2"):
        if tag in font:
            del font[tag]
    profile = font["maxp"]
    profile.tableVersion = 0x00010000
    for name in (
        "maxTwilightPoints", "maxStorage", "maxFunctionDefs", "maxInstructionDefs", "maxStackElements",
        "maxSizeOfInstructions", "maxComponentElements", "maxPoints", "maxContours", "maxCompositePoints",
        "maxCompositeContours", "maxComponentDepth",
    ):  # fmt: skip
        setattr(profile, name, 0)
    profile.maxZones = 1
    font["post"].formatType = 3.0
    font.sfntVersion = "\x00\x01\x00\x00"
