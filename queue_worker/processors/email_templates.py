"""Mail templates: `<name>.txt` and `<name>.html` by Jinja2, from the user's folder first, then from the shipped ones.

The text file holds the subject in `{% block subject %}` and the body around it; either file may be missing, but
something must give the subject. Names that begin with "_" are for shared layouts and cannot be asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import FileSystemLoader, StrictUndefined, Template, TemplateNotFound, TemplateSyntaxError, UndefinedError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from queue_worker.errors import ConfigError, InvalidPayload

_SHIPPED = Path(__file__).parent / "templates" / "email"


class Content(NamedTuple):
    """What a mail says."""

    subject: str
    text: str | None
    html: str | None


class Templates:
    """The templates of one processor; safe for several threads.

    Raises ConfigError where `folder` is missing or one of its templates cannot be parsed.
    """

    def __init__(self, folder: Path | None) -> None:
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"QUEUE_WORKER_EMAIL_TEMPLATES: there is no folder {str(folder)!r}")
        folders = [_SHIPPED] if folder is None else [folder, _SHIPPED]
        # The sandbox is a second wall only: what a message brings is data and never becomes template source.
        self._environment = ImmutableSandboxedEnvironment(
            loader=FileSystemLoader(folders),
            undefined=StrictUndefined,
            autoescape=lambda name: name is not None and name.endswith(".html"),
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._check()

    def _check(self) -> None:
        for name in self._environment.list_templates(extensions=["txt", "html"]):
            try:
                self._environment.get_template(name)
            except TemplateSyntaxError as error:
                raise ConfigError(f"e-mail template {name}, line {error.lineno}: {error.message}") from None

    def names(self) -> list[str]:
        """Return the names that a message may ask for."""
        files = self._environment.list_templates(extensions=["txt", "html"])
        return sorted({name.rpartition(".")[0] for name in files if name[0] != "_" and "/" not in name})

    def render(self, name: str, context: Mapping[str, Any]) -> Content:
        """Render template `name`; the subject is empty where the template has none.

        Raises InvalidPayload for an unknown name and for a context that does not fit, naming what is missing.
        """
        text, html = self._find(f"{name}.txt"), self._find(f"{name}.html")
        if text is None and html is None:
            raise InvalidPayload(f"template: there is none of that name; there are: {', '.join(self.names())}")
        try:
            return Content(
                _subject(text, context) or unescape(_subject(html, context)),
                None if text is None else _without_subject(text, context),
                None if html is None else _without_subject(html, context),
            )
        except UndefinedError as error:
            raise InvalidPayload(f"context: template {name!r}: {error.message}") from None
        except Exception as error:
            # Only the kind: the text of the error may repeat values of the context.
            raise InvalidPayload(f"context: template {name!r} cannot take it: {type(error).__name__}") from None

    def _find(self, file: str) -> Template | None:
        try:
            return self._environment.get_template(file)
        except TemplateNotFound:
            return None


def _subject(template: Template | None, context: Mapping[str, Any]) -> str:
    if template is None or "subject" not in template.blocks:
        return ""
    text = "".join(template.blocks["subject"](template.new_context(dict(context))))
    # Only the ends are trimmed: a line break inside would come from data and is refused with the other headers.
    return text.strip(" \n")


def _nothing(context: Context) -> Iterator[str]:
    return iter(())


def _without_subject(template: Template, context: Mapping[str, Any]) -> str:
    with_context = template.new_context(dict(context))
    if "subject" in template.blocks:
        with_context.blocks["subject"] = [_nothing]
    return "".join(template.root_render_func(with_context)).strip("\n") + "\n"
