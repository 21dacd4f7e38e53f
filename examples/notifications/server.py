"""The HTTP side. Errors are `{"error": "..."}`: 400 for the caller's, 500 where a message could not be enqueued.

uvicorn --factory examples.notifications.server:combined     with a worker in the same process
uvicorn --factory examples.notifications.server:separate     without; that is `queue-worker start --app ...jobs:app`
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

import psycopg
from fastapi import APIRouter, FastAPI, HTTPException, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from psycopg_pool import ConnectionPool
from pydantic import BaseModel, ConfigDict

from examples.notifications.jobs import Call, Notification, Resize, app
from queue_worker import Queue, QueueWorkerError
from queue_worker.errors import QueueNotFound, UsageError

DELAY = "10s"
"""How long a notification waits where the caller does not say."""

PATIENCE = 1.0
"""Seconds that a caller waits for a connection to the database, before the answer is 500."""


class Wanted(Notification):
    """A notification and what may be said about it; all but the message is optional."""

    model_config = ConfigDict(extra="forbid")

    delay: str | None = None
    at: datetime | None = None
    priority: int | None = None
    key: str | None = None


class WantedCall(Call):
    """A call, and its own time limit in place of the queue's."""

    limit: str | None = None


MessageId = Annotated[int, Path(ge=1, lt=2**63)]

router = APIRouter()


def queue(request: Request, name: str, model: type[BaseModel] | None = None) -> Queue:
    """Return a queue over the server's own pool."""
    return Queue(name, database=request.app.state.pool, model=model)


@router.post("/schedule-notification")
def schedule(request: Request, wanted: Wanted) -> dict[str, Any]:
    """Enqueue one notification: after `delay`, or `at` a time."""
    delay = DELAY if wanted.delay is None and wanted.at is None else wanted.delay
    msg_id = queue(request, "notifications", Notification).send(
        Notification(message=wanted.message),
        delay=delay,
        run_at=wanted.at,
        priority=wanted.priority,
        unique_key=wanted.key,
    )
    return {"id": str(msg_id)}


@router.post("/call")
def phone(request: Request, wanted: WantedCall) -> dict[str, Any]:
    """Enqueue one telephone call, with a time limit of its own where the caller gives one."""
    payload = Call(message=wanted.message, seconds=wanted.seconds)
    return {"id": str(queue(request, "calls", Call).send(payload, timeout=wanted.limit))}


@router.post("/resize-image")
def resize(request: Request, wanted: Resize) -> dict[str, Any]:
    """Enqueue one picture; the same size of the same picture waits once."""
    key = f"{wanted.name}:{wanted.width}"
    return {"id": str(queue(request, "images", Resize).send(wanted, unique_key=key))}


@router.post("/notifications/{msg_id}/{act}")
def settle(request: Request, msg_id: MessageId, act: str) -> dict[str, Any]:
    """Cancel a notification, or complete it by hand: `POST /notifications/7/cancel`."""
    notifications = queue(request, "notifications")
    acts = {"cancel": notifications.cancel, "complete": notifications.complete}
    if act not in acts:
        raise HTTPException(404, "no such page")
    if not acts[act](msg_id):
        raise HTTPException(404, f"no notification {msg_id} waits or runs")
    return {"id": str(msg_id), "done": act}


def combined() -> FastAPI:
    """Return the server with its worker."""
    return _server(with_worker=True)


def separate() -> FastAPI:
    """Return the server alone."""
    return _server(with_worker=False)


def _server(*, with_worker: bool) -> FastAPI:
    # A pool of our own, because queue_worker's waits ten seconds for a database that is away: too long for a caller.
    pool: ConnectionPool[Any] = ConnectionPool(
        os.environ["DATABASE_URL"], min_size=1, max_size=4, timeout=PATIENCE, open=False
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if with_worker:
                await stack.enter_async_context(app.running())
            # Without waiting for a connection: the server starts, and answers 500, while the database is away.
            pool.open(wait=False)
            stack.callback(pool.close)
            yield

    server = FastAPI(lifespan=lifespan)
    server.state.pool = pool
    server.include_router(router)
    _say_errors(server)
    return server


def _say_errors(server: FastAPI) -> None:
    @server.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 400)

    @server.exception_handler(UsageError)
    async def refused(_: Request, error: UsageError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @server.exception_handler(HTTPException)
    async def known(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    async def not_enqueued(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse({"error": "it could not be scheduled: try again later"}, 500)

    # A queue that is not there is our mistake, not the caller's.
    for kind in (QueueWorkerError, QueueNotFound, psycopg.Error):
        server.add_exception_handler(kind, not_enqueued)
