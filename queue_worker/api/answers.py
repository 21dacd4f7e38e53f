"""What the API answers: one envelope for what went well, one for every error."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from queue_worker.sending import to_json_data


class Failure(BaseModel):
    """Every error: what was wrong, in one line. `request` finds the details in the log of the server."""

    success: bool = False
    error: str
    request: str | None = None


class Sent(BaseModel):
    """A message was sent; ids are strings, because JavaScript cannot hold every bigint."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    success: bool = True
    job_id: str
    queue: str


class SentBatch(Sent):
    """Messages were sent; `jobId` is the first of `jobIds`, which are in the order of the batch."""

    job_ids: list[str]


class Data(BaseModel):
    """`data` is what was asked for."""

    success: bool = True
    data: Any


class ApiError(Exception):
    """Ends a request with `status` and one line for the caller."""

    def __init__(self, status: int, line: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(line)
        self.status = status
        self.line = line
        self.headers = headers


_TEXTS = {
    400: "The request is not one that this server understands",
    401: "No token, or a wrong one",
    403: "The token is read-only, or the request comes from another site",
    404: "There is no such queue, message, dead letter or schedule",
    405: "The method is not allowed here",
    408: "The body did not arrive in time",
    413: "The body is larger than 1 MiB",
    421: "The Host header is not one of this server's",
    422: "A value is wrong; the line names it",
    429: "Too many wrong tokens, or the limit of the queue is reached",
    503: "The database cannot be reached, or is too slow",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the part of an OpenAPI route that documents errors: those that every route has, and `statuses`."""
    every = (400, 401, 403, 408, 413, 421, 422, 429, 503)
    return {one: {"model": Failure, "description": _TEXTS[one]} for one in sorted({*every, *statuses})}


def failure(request: Request, status: int, line: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error as every client of this API gets it."""
    body = Failure(error=line, request=getattr(request.state, "request_id", None))
    return JSONResponse(body.model_dump(), status, headers)


def plain(value: Any) -> Any:
    """Return rows of the database as JSON has them: times as ISO 8601, ids (`..._id`, `..._from`) as strings."""
    return _ids_as_text(to_json_data(value, "the answer"))


def _ids_as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: str(item)
            if name.endswith(("_id", "redriven_from")) and isinstance(item, int)
            # What users wrote is theirs, whatever they call their fields.
            else (item if name in ("payload", "headers", "result", "detail") else _ids_as_text(item))
            for name, item in value.items()
        }
    return [_ids_as_text(item) for item in value] if isinstance(value, list) else value
