"""Who looks at a page, how pages are made, and the forms that come back from them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from queue_worker._version import __version__
from queue_worker.api.access import COOKIE, Role, caller_of
from queue_worker.api.answers import ApiError
from queue_worker.api.dashboard import shapes
from queue_worker.api.guard import Parts
from queue_worker.api.jobs import parts_of

FOLDER = Path(__file__).parent

NOTICES = {
    "paused": "The queue is paused.",
    "resumed": "The queue runs again.",
    "redriven": "{n} sent again.",
    "discarded": "{n} deleted.",
    "purged": "{n} deleted.",
    "cancelled": "The message is cancelled.",
    "completed": "The message is settled as done.",
    "edited": "The payload is replaced.",
    "ran": "The schedule has sent a message.",
    "schedule": "The schedule is changed.",
}
"""What a page says after an act, by the word in its address; nothing else of the address is shown."""

_environment = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(
    count=shapes.count,
    age=shapes.age,
    percent=shapes.percent,
    rate=shapes.rate,
    moment=shapes.moment,
    since=shapes.since,
    tojson_text=lambda value: json.dumps(value, ensure_ascii=False)[:300],
    pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
)


class LoginNeeded(Exception):
    """A browser without a session asks for a page."""


@dataclass(frozen=True)
class Visitor:
    """Who looks: `operator` may change something. `root` is the path that the application is mounted at."""

    request: Request
    parts: Parts
    role: Role
    cookie: str
    root: str

    @property
    def operator(self) -> bool:
        """Whether the visitor may change something."""
        return self.role == "operator"

    def lasts(self) -> bool:
        """Whether the session that the visitor came with, if any, is still one."""
        return not self.cookie or self.parts.access.role_of_session(self.cookie) is not None

    def page(self, template: str, code: int = 200, **values: Any) -> HTMLResponse:
        """Return a page made of a template."""
        word = self.request.query_params.get("notice", "")
        number = self.request.query_params.get("n", "")
        notice = NOTICES.get(word, "").format(n=number if number.isdecimal() and len(number) < 16 else "Some")
        return render(
            template,
            code,
            root=self.root,
            operator=self.operator,
            session=bool(self.cookie),
            csrf=self.parts.access.csrf(self.cookie),
            notice=notice,
            **values,
        )

    def back(self, path: str, notice: str, n: int | None = None) -> RedirectResponse:
        """Return a redirect to a page after an act; `notice` is one of `NOTICES`."""
        query = urlencode({"notice": notice, **({} if n is None else {"n": n})})
        return RedirectResponse(f"{self.root}{path}?{query}", 303)


def render(template: str, code: int = 200, **values: Any) -> HTMLResponse:
    """Return a page; `values` must hold all that the template names."""
    text = _environment.get_template(template).render(version=__version__, **values)
    return HTMLResponse(text, code)


def root_of(request: Request) -> str:
    """Return the path that the application is mounted at, without a slash at its end."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def is_browser(request: Request) -> bool:
    """Whether a person waits for a page."""
    return "text/html" in request.headers.get("accept", "")


async def visitor(request: Request, parts: Annotated[Parts, Depends(parts_of)]) -> Visitor:
    """Return who looks, by cookie or bearer token; raises LoginNeeded for a browser, ApiError for others."""
    access = parts.access
    cookie = request.cookies.get(COOKIE, "")
    role: Role | None = "operator" if access.open else access.role_of_session(cookie) if cookie else None
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if role is None and kind.lower() == "bearer":
        role = access.role_of(token)
        cookie = ""
        if role is None:
            raise access.refuse(caller_of(request))
    if role is None and is_browser(request) and request.method == "GET":
        raise LoginNeeded
    if role is None:
        raise ApiError(401, "a token is needed: Authorization: Bearer ...", {"WWW-Authenticate": "Bearer"})
    return Visitor(request, parts, role, "" if access.open else cookie, root_of(request))


async def form_of(request: Request) -> dict[str, str]:
    """Return the fields of a posted form; raises ApiError."""
    raw = await request.body()
    try:
        return dict(parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=50))
    except ValueError:
        raise ApiError(422, "the form cannot be read") from None


@dataclass(frozen=True)
class Act:
    """An operator's form, checked to come from a page of the same session."""

    visitor: Visitor
    form: dict[str, str]


async def act(who: Annotated[Visitor, Depends(visitor)], form: Annotated[dict[str, str], Depends(form_of)]) -> Act:
    """Return a form of somebody who may change something; raises ApiError 403."""
    if not who.operator:
        raise ApiError(403, "this token is read-only")
    if not who.parts.access.csrf_fits(who.cookie, form.get("csrf", "")):
        raise ApiError(403, "the page is out of date: load it again")
    return Act(who, form)


Looks = Annotated[Visitor, Depends(visitor)]
Acts = Annotated[Act, Depends(act)]
