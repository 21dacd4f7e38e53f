"""Dead letters over HTTP: list, look at, edit, redrive, discard."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from queue_worker.api.access import Operator, Reader
from queue_worker.api.answers import ApiError, Data, documented, plain
from queue_worker.api.backend import Backend
from queue_worker.api.jobs import Body, Given, shown
from queue_worker.api.values import Limit, MessageId, QueueName, number, numbers

router = APIRouter(prefix="/api/queues/{queue}/dead", tags=["dead letters"], responses=documented(404))

_IDS = {"type": "array", "items": {"type": "string", "pattern": "^[1-9][0-9]{0,17}$"}, "description": "None: all"}
_CHOICE = {
    "requestBody": {"content": {"application/json": {"schema": {"type": "object", "properties": {"ids": _IDS}}}}}
}
_PAYLOAD = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}


@router.get("")
def list_dead(queue: QueueName, parts: Given, _: Reader, limit: Limit = 50) -> Data:
    """List the dead letters of a queue, newest first, redacted."""
    parts.backend.check_queue(queue)
    rows = parts.backend.rows("list_dead", queue=queue, max_count=limit)
    return Data(data=[shown(row) for row in rows])


def find_dead(backend: Backend, queue: str, dead_id: int, *, full: bool = False, may: bool = False) -> dict[str, Any]:
    """Return one dead letter with its failures; `full`, `may`: see `jobs.look_up`. Raises ApiError."""
    backend.check_queue(queue)
    rows = backend.rows("list_dead", queue=queue, dead_ids=[dead_id], max_count=1)
    if not rows:
        raise ApiError(404, f"queue {queue!r} has no dead letter {dead_id}")
    row = rows[0]
    lives = backend.rows("message", queue=queue, msg_id=row["msg_id"])
    row["failures"] = next((one["failures"] for one in lives if one["dead_id"] == dead_id), [])
    if not full:
        return shown(row)
    if not may:
        raise ApiError(403, "this token is read-only: payloads are redacted for it")
    backend.rows("note_reading", queue=queue, msg_id=row["msg_id"])
    found: dict[str, Any] = plain(row)
    return found


@router.get("/{dead_id}")
def show_dead(
    queue: QueueName,
    dead_id: MessageId,
    parts: Given,
    found: Reader,
    full: Annotated[bool, Query(description="The payload as it is: operators only, and noted in the audit")] = False,
) -> Data:
    """Return one dead letter with its failures."""
    return Data(data=find_dead(parts.backend, queue, number(dead_id), full=full, may=found == "operator"))


@router.post("/redrive", openapi_extra=_CHOICE)
def redrive(
    queue: QueueName,
    parts: Given,
    body: Body,
    _: Operator,
    limit: Annotated[int | None, Query(ge=1, le=1_000_000, description="So many at most")] = None,
) -> Data:
    """Send dead letters again: those of `ids`, or all."""
    count = act_on(parts.backend, "redrive", queue, body, max_count=limit)
    return Data(data={"redriven": count})


@router.post("/discard", openapi_extra=_CHOICE)
def discard(queue: QueueName, parts: Given, body: Body, _: Operator) -> Data:
    """Delete dead letters for good: those of `ids`, or all."""
    return Data(data={"discarded": act_on(parts.backend, "discard", queue, body)})


def act_on(backend: Backend, function: str, queue: str, body: Any, **params: Any) -> int:
    """Call a function on the dead letters that `body` chooses; returns how many it took. Raises ApiError."""
    backend.check_queue(queue)
    if body is not None and (not isinstance(body, dict) or set(body) - {"ids"}):
        raise ApiError(422, 'the body must be empty, for all, or {"ids": [...]}')
    ids = numbers(body.get("ids"), "ids") if body else None
    count = int(backend.value(function, queue=queue, dead_ids=ids, **params))
    backend.forget()
    return count


@router.post("/{dead_id}", openapi_extra=_PAYLOAD)
def edit(
    queue: QueueName,
    dead_id: MessageId,
    parts: Given,
    body: Body,
    _: Operator,
    retry: Annotated[bool, Query(description="Redrive it at once")] = False,
) -> Data:
    """Replace the payload of a dead letter by the body; the message it becomes is retried with that."""
    return Data(data=edit_dead(parts.backend, queue, number(dead_id), body, retry=retry))


def edit_dead(backend: Backend, queue: str, dead_id: int, payload: Any, *, retry: bool) -> dict[str, Any]:
    """Replace the payload of a dead letter, and redrive it where `retry`; raises ApiError."""
    backend.check_queue(queue)
    if not isinstance(payload, dict):
        raise ApiError(422, "a payload is a JSON object")
    if not backend.value("edit_dead", queue=queue, dead_id=dead_id, payload=payload):
        raise ApiError(404, f"queue {queue!r} has no dead letter {dead_id}")
    redriven = int(backend.value("redrive", queue=queue, dead_ids=[dead_id])) if retry else 0
    backend.forget()
    return {"edited": str(dead_id), "redriven": redriven}
