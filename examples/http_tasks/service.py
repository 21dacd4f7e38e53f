"""The HTTP side: a route of our own beside those of queue_worker, with a worker in the same process or without.

uvicorn --factory examples.http_tasks.service:combined     API and worker in one process
uvicorn --factory examples.http_tasks.service:separate     the API alone
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from examples.http_tasks.jobs import Readme, app, readme
from queue_worker import QueueWorkerError
from queue_worker.api import create_api, mount_api

Given = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


def token_needed(given: Given) -> None:
    """Let nobody pass without the token that the other routes want too."""
    token = os.environ["QUEUE_WORKER_API_TOKEN"]
    if given is None or not secrets.compare_digest(given.credentials.encode(), token.encode()):
        raise HTTPException(401, "a token is needed: Authorization: Bearer ...")


async def order_readme(wanted: Readme) -> dict[str, object]:
    """Enqueue one README; the caller need not know what the queue is called."""
    msg_id = await readme.asend(wanted)
    return {"success": True, "jobId": str(msg_id), "queue": readme.queue.name}


def combined() -> FastAPI:
    """Return the service with its worker."""
    return _service(with_worker=True)


def separate() -> FastAPI:
    """Return the service alone; the worker is `queue-worker start --app examples.http_tasks.jobs:app`."""
    return _service(with_worker=False)


def _service(*, with_worker: bool) -> FastAPI:
    if not os.environ.get("QUEUE_WORKER_API_TOKEN"):
        raise SystemExit("set QUEUE_WORKER_API_TOKEN")
    site = FastAPI(lifespan=_worker if with_worker else None, openapi_url=None)
    site.add_api_route(
        "/api/jobs/readme", order_readme, methods=["POST"], status_code=201, dependencies=[Depends(token_needed)]
    )
    _say_errors(site)
    # Last, because it takes every path that nobody took before: /health, /api/..., and the dashboard.
    mount_api(site, "/", create_api(app))
    return site


@asynccontextmanager
async def _worker(_: FastAPI) -> AsyncIterator[None]:
    async with app.running():
        yield


def _say_errors(site: FastAPI) -> None:
    """Say errors of our own route as the other routes do."""

    def failure(status: int, line: str) -> JSONResponse:
        return JSONResponse({"success": False, "error": line}, status)

    @site.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return failure(error.status_code, str(error.detail))

    @site.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return failure(422, f"{first['loc'][-1]}: {first['msg']}")

    @site.exception_handler(QueueWorkerError)
    async def not_sent(_: Request, error: QueueWorkerError) -> JSONResponse:
        return failure(503, "the task could not be enqueued: try again")
