"""The routes of the dashboard, and what is served without a session: login, style, script, icon."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from queue_worker.api.access import COOKIE, SESSION_SECONDS, caller_of
from queue_worker.api.answers import ApiError
from queue_worker.api.dashboard import actions, live, pages
from queue_worker.api.dashboard.visitor import FOLDER, form_of, is_browser, render, root_of
from queue_worker.api.jobs import Given

_STATIC = {"app.css": "text/css", "app.js": "text/javascript", "icon.svg": "image/svg+xml"}

opened = APIRouter(include_in_schema=False)


def routers() -> list[APIRouter]:
    """Return every router of the dashboard."""
    return [opened, pages.router, actions.router, live.router]


@opened.get("/static/{name}")
def static(name: str) -> Response:
    """Return the style, the script or the icon."""
    if name not in _STATIC:
        raise ApiError(404, "there is no such page")
    return FileResponse(FOLDER / "static" / name, media_type=_STATIC[name], headers={"Cache-Control": "max-age=300"})


@opened.get("/favicon.ico")
def icon() -> Response:
    """Return the icon, where browsers look for one."""
    return static("icon.svg")


@opened.get("/login")
def login_page(request: Request, parts: Given) -> Response:
    """Return the form for a token."""
    if parts.access.open:
        return RedirectResponse(f"{root_of(request)}/", 303)
    return render("login.html", root=root_of(request), error="")


@opened.post("/login")
def login(request: Request, parts: Given, form: Annotated[dict[str, str], Depends(form_of)]) -> Response:
    """Begin a session for the token of a form; without one, that is no caller of ours."""
    root = root_of(request)
    if "token" not in form:
        raise ApiError(401, "a token is needed", {"WWW-Authenticate": "Bearer"})
    role = parts.access.role_of(form["token"])
    if role is None:
        refused = parts.access.refuse(caller_of(request))
        if not is_browser(request):
            raise refused
        return render("login.html", refused.status, root=root, error=refused.line)
    answer = RedirectResponse(f"{root}/", 303)
    # Secure: a browser keeps it over HTTPS and on this machine only.
    answer.set_cookie(
        COOKIE,
        parts.access.session(role),
        max_age=SESSION_SECONDS,
        path=root or "/",
        secure=True,
        httponly=True,
        samesite="strict",
    )
    return answer
