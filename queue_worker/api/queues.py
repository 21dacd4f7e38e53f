"""Queues over HTTP: their state and history, pause and resume, purge."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from queue_worker.api.access import Operator, Reader
from queue_worker.api.answers import ApiError, Data, documented, plain
from queue_worker.api.backend import Backend
from queue_worker.api.jobs import Body, Given
from queue_worker.api.values import Limit, QueueName, redacted

WEEK = 7 * 24 * 60

router = APIRouter(prefix="/api", tags=["queues"], responses=documented())
one = APIRouter(prefix="/api/queues/{queue}", tags=["queues"], responses=documented(404))
_REASON = {
    "requestBody": {
        "content": {"application/json": {"schema": {"type": "object", "properties": {"reason": {"type": "string"}}}}}
    }
}


@router.get("/queues")
def list_queues(parts: Given, _: Reader) -> Data:
    """List all queues: what is in them, what ended in the last hour; `capped`: waiting is an estimate."""
    return Data(data=parts.backend.snapshot()["queues"])


@router.get("/workers")
def list_workers(parts: Given, _: Reader) -> Data:
    """List the worker processes."""
    return Data(data=parts.backend.snapshot()["workers"])


@router.get("/alerts")
def list_alerts(parts: Given, _: Reader, limit: Limit = 100) -> Data:
    """List alerts: open ones have no `cleared_at`."""
    return Data(data=plain(parts.backend.rows("list_alerts", max_count=limit)))


@router.get("/audit")
def audit(parts: Given, _: Reader, limit: Limit = 100) -> Data:
    """List who did what, newest first."""
    return Data(data=[redacted(row) for row in plain(parts.backend.rows("list_audit", max_count=limit))])


@one.get("/status")
def status(queue: QueueName, parts: Given, _: Reader) -> Data:
    """Return the state of one queue, counted to the last message.

    `created`: waiting and delayed. `active`: running. `total`: these and all that were ever completed.
    """
    return Data(data=status_of(parts.backend, queue))


def status_of(backend: Backend, queue: str) -> dict[str, Any]:
    """Return the state of one queue; raises ApiError."""
    backend.check_queue(queue)
    rows = backend.rows("queue_status", queue=queue)
    if not rows:
        raise ApiError(404, f"queue {queue!r} does not exist")
    row: dict[str, Any] = plain(rows[0])
    if row["waiting"] is None:
        raise ApiError(403, f"queue {queue!r} belongs to another role of the database: `queue-worker create {queue}`")
    created, active = row["waiting"] + row["delayed"], row["running"]
    return {"created": created, "active": active, "total": created + active + row["completed"], **row}


@one.get("/history")
def history(
    queue: QueueName,
    parts: Given,
    _: Reader,
    minutes: Annotated[int, Query(ge=1, le=WEEK, description="How far back, a week at most")] = 60,
) -> Data:
    """Return what ended in each minute; minutes in which nothing ended are left out."""
    parts.backend.check_queue(queue)
    return Data(data=plain(parts.backend.rows("history", queue=queue, minutes=minutes)))


@one.post("/pause", openapi_extra=_REASON)
def pause(queue: QueueName, parts: Given, body: Body, _: Operator) -> Data:
    """Pause a queue: what runs goes on, nothing new is claimed; `reason` is shown to everybody."""
    reason = body.get("reason") if isinstance(body, dict) else None
    if body is not None and (not isinstance(body, dict) or not isinstance(reason, (str, type(None)))):
        raise ApiError(422, 'the body must be empty or {"reason": "..."}')
    return _act(parts.backend, "pause", queue, "paused", reason=reason)


@one.post("/resume")
def resume(queue: QueueName, parts: Given, _: Operator) -> Data:
    """Resume a paused queue, also one that its circuit breaker paused."""
    return _act(parts.backend, "resume", queue, "resumed")


@one.post("/purge")
def purge(queue: QueueName, parts: Given, _: Operator) -> Data:
    """Delete every waiting, delayed and running message for good; dead letters and completed ones stay."""
    return _act(parts.backend, "purge", queue, "purged")


def _act(backend: Backend, function: str, queue: str, said: str, **params: Any) -> Data:
    backend.check_queue(queue)
    result = backend.value(function, queue=queue, **params)
    backend.forget()
    return Data(data={said: result if isinstance(result, int) else True})
