"""Whether the process lives and can work; open to everybody, so a status word is all they say."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from queue_worker.api.jobs import Given

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
def health() -> JSONResponse:
    """Say that the process lives; asks nobody."""
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
