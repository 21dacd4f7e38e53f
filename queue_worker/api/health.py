"""Whether the process lives and can work, a status word that is open to everybody; and the metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from queue_worker.api.access import Reader
from queue_worker.api.answers import documented
from queue_worker.api.jobs import Given
from queue_worker.metrics import render

router = APIRouter(tags=["health"])

_WORD = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}


def _answer(text: str) -> dict[str, object]:
    return {"description": text, "content": {"application/json": {"schema": _WORD}}}


@router.get(
    "/health",
    responses={
        200: _answer("The process lives"),
        403: _answer("Not from this machine"),
        421: _answer("Not a Host of this server"),
    },
)
async def health() -> JSONResponse:
    """Say that the process lives; asks nobody."""
    # On the event loop: it answers while every thread waits for a database.
    return JSONResponse({"status": "ok"})


@router.get(
    "/ready",
    responses={
        200: _answer("The database answers, its schema fits, and the worker's loops turn"),
        403: _answer("Not from this machine"),
        421: _answer("Not a Host of this server"),
        503: _answer("Not so"),
    },
)
def ready(parts: Given) -> JSONResponse:
    """Say whether the process can work: database, schema, and the loops of a worker beside it."""
    if parts.backend.ready():
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "unavailable"}, 503)


@router.get(
    "/metrics",
    response_class=Response,
    responses=documented() | {200: {"description": "Prometheus' text format", "content": {"text/plain": {}}}},
)
def metrics(parts: Given, _: Reader) -> Response:
    """Return the metrics of all workers, for Prometheus."""
    text, kind = render(parts.backend.rows)
    return Response(text, media_type=kind)
