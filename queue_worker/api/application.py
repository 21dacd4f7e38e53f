"""The application: routes, errors and guards put together."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from queue_worker._version import __version__
from queue_worker.api import dashboard, dead, health, jobs, queues, schedules
from queue_worker.api.access import Access, Reader
from queue_worker.api.answers import ApiError, failure
from queue_worker.api.backend import Backend
from queue_worker.api.dashboard.visitor import LoginNeeded, is_browser, render, root_of
from queue_worker.api.guard import Guard, Parts, loopback_hosts
from queue_worker.config import Settings, load_settings
from queue_worker.processor import App

_DESCRIPTION = """Send messages, look into queues and operate them.

Every answer is `{"success": true, ...}` or `{"success": false, "error": "..."}`. Ids are strings."""


def create_api(
    app: App | None = None, settings: Settings | None = None, *, healthy: Callable[[], bool] | None = None
) -> FastAPI:
    """Return the HTTP API with the dashboard, to be served, or mounted: `mount_api(site, "/queues", create_api(app))`.

    `app`: its processors' models check what is sent. `settings`: None for those of the environment. `healthy`: what
    `/ready` asks of a worker in this process. Without a token only loopback Hosts are served. Raises ConfigError.
    """
    settings = settings or load_settings()
    settings.require_database()
    parts = Parts(Access(settings), Backend(settings, healthy), app or App(), threading.Event())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # An application may be started again after its end.
        parts.closing.clear()
        try:
            yield
        finally:
            parts.closing.set()
            parts.backend.close()

    api = FastAPI(
        title="queue_worker",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        # It would name the Host of the request, and http:// behind a proxy with TLS.
        redirect_slashes=False,
        # Their pages load scripts from elsewhere, which our Content-Security-Policy forbids.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    api.state.queue_worker = parts
    hosts = loopback_hosts() if parts.access.open else frozenset[str]()
    api.add_middleware(Guard, parts=parts, hosts=hosts)
    _say_errors_alike(api)
    own = (health.router, jobs.router, queues.router, queues.one, dead.router, schedules.router)
    for router in (*own, *dashboard.routers()):
        api.include_router(router)
    _document(api)
    return api


def mount_api(site: FastAPI, path: str, api: FastAPI) -> None:
    """Mount `api`, made by `create_api`, under `path` of your own application, so that it ends with it.

    Starlette tells the outermost application alone that the server ends ("Lifespan" in its documentation), and mounted
    without this, `api` would keep its database connections. Mount at "/" after your own routes: it takes every path.
    """
    own = site.router.lifespan_context

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[Any]:
        async with own(application) as state, api.router.lifespan_context(api):
            yield state

    site.router.lifespan_context = lifespan
    site.mount(path, api)


def _document(api: FastAPI) -> None:
    @api.get("/api/openapi.json", include_in_schema=False)
    def openapi(_: Reader) -> JSONResponse:
        """Return the OpenAPI document."""
        return JSONResponse(api.openapi())


def _answer(request: Request, status: int, line: str, headers: dict[str, str] | None) -> Response:
    """Return an error as a page where a person waits for one, else as JSON."""
    if not is_browser(request):
        return failure(request, status, line, headers)
    page = render("error.html", status, root=root_of(request), error=line, status=status)
    page.headers.update(headers or {})
    return page


def _say_errors_alike(api: FastAPI) -> None:
    @api.exception_handler(LoginNeeded)
    async def login(request: Request, _: LoginNeeded) -> Response:
        return RedirectResponse(f"{root_of(request)}/login", 303)

    @api.exception_handler(ApiError)
    async def ours(request: Request, error: ApiError) -> Response:
        return _answer(request, error.status, error.line, error.headers)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        # The place and the rule; never the value, which may be anything.
        place = ".".join(str(part) for part in first["loc"] if part not in ("query", "path", "body"))
        return failure(request, 422, f"{place or 'the request'}: {first['msg']}")

    @api.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        line = {404: "there is no such page", 405: "this method is not allowed here"}.get(
            error.status_code, str(error.detail)
        )
        return _answer(request, error.status_code, line, dict(error.headers or {}))
