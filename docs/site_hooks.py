"""Hooks of the docs site (mkdocs): pages link to files outside docs/, as on GitHub; the site gets copies of those."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

COPIES = "repository"
"""Folder of the site with what lies outside docs/."""

_FENCE = re.compile(r"(^ *```.*?^ *```)", re.S | re.M)
_NOTE = re.compile(r"^( *```\w+) +([^\n]+)$", re.M)
_LINK = re.compile(r"(\]\()([^)\s#]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give headings the anchors that they have on GitHub."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def slug(heading: str, separator: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a copy of every file outside docs/ to which the navigation or a page leads, and of what those lead to."""
    docs = Path(config.docs_dir)
    named = set(re.findall(rf"{COPIES}/([\w./-]+)", str(config.nav)))
    found: set[str] = set()
    waiting = [*named, *(_place(docs, file.src_uri) for file in files.documentation_pages())]
    while waiting:
        place = waiting.pop()
        if place in found:
            continue
        found.add(place)
        if place.endswith(".md"):
            waiting += _targets(docs, place)
    for place in sorted(found):
        if not place.startswith(f"{docs.name}/"):
            level = InclusionLevel.INCLUDED if place in named else InclusionLevel.NOT_IN_NAV
            path = str(docs.parent / place)
            files.append(File.generated(config, f"{COPIES}/{place}", abs_src_path=path, inclusion=level))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Turn the links of a page, which are those of the repository, into those of the site."""
    docs = Path(config.docs_dir)
    place = _place(docs, page.file.src_uri)
    folder = posixpath.dirname(page.file.src_uri)

    def turned(match: re.Match[str]) -> str:
        if _elsewhere(match[2]):
            return match[0]
        target = _resolve(docs, place, match[2])
        uri = target.removeprefix(f"{docs.name}/") if target.startswith(f"{docs.name}/") else f"{COPIES}/{target}"
        return match[1] + posixpath.relpath(uri, folder or ".")

    return _outside_fences(_NOTE.sub(_noted, markdown), lambda text: _LINK.sub(turned, text))


def _noted(match: re.Match[str]) -> str:
    """Return the first line of a fence: the name of its file becomes a title, the reason why nobody runs it goes."""
    return match[1] if match[2].startswith("not-run: ") else f'{match[1]} title="{match[2]}"'


def _place(docs: Path, uri: str) -> str:
    """Return where a file of the site lies in the repository."""
    return uri.removeprefix(f"{COPIES}/") if uri.startswith(f"{COPIES}/") else f"{docs.name}/{uri}"


def _targets(docs: Path, place: str) -> list[str]:
    found: list[str] = []

    def collect(text: str) -> str:
        found.extend(link for _, link in _LINK.findall(text) if not _elsewhere(link))
        return text

    _outside_fences((docs.parent / place).read_text(encoding="utf-8"), collect)
    return [_resolve(docs, place, link) for link in found]


def _resolve(docs: Path, place: str, link: str) -> str:
    """Return the file of the repository to which `link` on the page `place` leads; a folder means its README."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(place), link))
    path = docs.parent / target
    if path.is_dir():
        target, path = f"{target}/README.md", path / "README.md"
    if target.startswith("..") or not path.is_file():
        raise PluginError(f"{place}: the link {link} leads to no file of the repository")
    return target.replace(os.sep, "/")


def _elsewhere(link: str) -> bool:
    return "://" in link or link.startswith(("mailto:", "#"))


def _outside_fences(markdown: str, change: Any) -> str:
    parts = _FENCE.split(markdown)
    return "".join(part if number % 2 else change(part) for number, part in enumerate(parts))
