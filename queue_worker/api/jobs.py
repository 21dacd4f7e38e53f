"""Messages over HTTP: send one or many, look one up wherever it is, list and search, cancel and complete."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request

from queue_worker import tracing
from queue_worker.api.access import Operator, Reader
from queue_worker.api.answers import ApiError, Data, Sent, SentBatch, documented, plain
from queue_worker.api.backend import Backend
from queue_worker.api.guard import Parts
from queue_worker.api.values import MAX_DEPTH, Limit, MessageId, QueueName, deeper, json_body, number, redacted
from queue_worker.errors import InvalidPayload, UsageError
from queue_worker.sending import UniqueMode, UniqueScope, json_text, payload_of, sql_options, to_json_data
from queue_worker.transport import JsonArray

MAX_BATCH = 1000

router = APIRouter(prefix="/api/jobs/{queue}", tags=["messages"], responses=documented(404))

State = Literal["waiting", "delayed", "running", "completed"]


async def parts_of(request: Request) -> Parts:
    """Return what the API of this request is made of."""
    found: Parts = request.state.queue_worker
    return found


Given = Annotated[Parts, Depends(parts_of)]
Body = Annotated[Any, Depends(json_body)]


def _body(example: Any, schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


_PAYLOAD = _body({"to": "ann@example.com", "subject": "Hello", "text": "Hi"}, {"type": "object"})
_BATCH = _body(
    [{"payload": {"to": "ann@example.com"}, "priority": 5}],
    {"type": "array", "items": {"type": "object", "required": ["payload"]}, "minItems": 1, "maxItems": MAX_BATCH},
)


class Options:
    """The options of a message as query parameters, under the names that Python's `send` has."""

    def __init__(
        self,
        delay: Annotated[str | None, Query(description="Not before: 30, 10s, 5m, 1h30m")] = None,
        run_at: Annotated[datetime | None, Query(description="Not before: ISO 8601 with its offset")] = None,
        priority: Annotated[int | None, Query(ge=0, le=100, description="0 to 100, higher first")] = None,
        unique_key: Annotated[str | None, Query(description="One message for each key")] = None,
        unique_mode: Annotated[UniqueMode | None, Query(description="What a second message of the key does")] = None,
        unique_scope: Annotated[UniqueScope | None, Query(description="Whether running ones count too")] = None,
        unique_for: Annotated[str | None, Query(description="How long the key holds")] = None,
        group_key: Annotated[str | None, Query(description="Strict order within the key, on ordered queues")] = None,
        expires_at: Annotated[datetime | None, Query(description="Not after: ISO 8601 with its offset")] = None,
        expires_in: Annotated[str | None, Query(description="Not after so much time")] = None,
        max_attempts: Annotated[int | None, Query(ge=1, le=1000, description="Instead of the queue's")] = None,
        retry_delay: Annotated[str | None, Query(description="Instead of the queue's")] = None,
        timeout: Annotated[str | None, Query(description="Instead of the queue's")] = None,
    ) -> None:
        self.given = {name: value for name, value in locals().items() if name != "self" and value is not None}


def _payload(parts: Parts, queue: str, payload: Any) -> dict[str, Any]:
    """Return a payload that the queue's processor can read, where this process knows it; raises ApiError 422."""
    processor = parts.app.processors.get(queue)
    if processor is not None and isinstance(payload, dict):
        try:
            processor.parse(_text(payload))
        except InvalidPayload as error:
            raise ApiError(422, f"the payload does not fit queue {queue!r}: {error}") from None
    try:
        return payload_of(payload)
    except UsageError as error:
        raise ApiError(422, str(error)) from None


def _text(payload: dict[str, Any]) -> str:
    try:
        return json_text(payload, "the payload")
    except UsageError as error:
        raise ApiError(422, str(error)) from None


def _options(given: dict[str, Any]) -> dict[str, Any]:
    try:
        return sql_options(given)
    except UsageError as error:
        raise ApiError(422, str(error)) from None


@router.post("", status_code=201, openapi_extra=_PAYLOAD)
def send(
    request: Request, queue: QueueName, body: Body, options: Annotated[Options, Depends()], parts: Given, _: Operator
) -> Sent:
    """Send one message: the body is its payload."""
    parts.backend.check_queue(queue)
    params = {"queue": queue, "payload": _payload(parts, queue, body), **_options(options.given)}
    with tracing.incoming(request.headers), tracing.sending(queue) as carrier:
        return Sent(job_id=str(parts.backend.value("send", **tracing.carry(params, carrier))), queue=queue)


@router.post("/batch", status_code=201, openapi_extra=_BATCH)
def send_batch(
    request: Request, queue: QueueName, body: Body, options: Annotated[Options, Depends()], parts: Given, _: Operator
) -> SentBatch:
    """Send many messages in one transaction: a list of {"payload": ..., and options of that message alone}."""
    parts.backend.check_queue(queue)
    if not isinstance(body, list) or not 1 <= len(body) <= MAX_BATCH:
        raise ApiError(422, f"the body must be a list of 1 to {MAX_BATCH} messages")
    found = [_item(parts, queue, one, place, options.given) for place, one in enumerate(body)]
    with tracing.incoming(request.headers), tracing.sending(queue) as carrier:
        items = JsonArray(tracing.carry(item, carrier) for item in found)
        ids = [str(next(iter(row.values()))) for row in parts.backend.rows("send_batch", queue=queue, messages=items)]
    return SentBatch(job_id=ids[0], job_ids=ids, queue=queue)


def _item(parts: Parts, queue: str, one: Any, place: int, general: dict[str, Any]) -> Any:
    if not isinstance(one, dict) or "payload" not in one:
        raise ApiError(422, f'message {place} of the batch must be {{"payload": ..., options}}')
    own = {name: value for name, value in one.items() if name != "payload"}
    if own.keys() & {"run_at", "delay", "delay_seconds"}:
        general = {name: value for name, value in general.items() if name not in ("run_at", "delay")}
    try:
        options = _options({**general, **own})
        return {"payload": _payload(parts, queue, one["payload"]), **to_json_data(options, "the options")}
    except ApiError as error:
        raise ApiError(error.status, f"message {place} of the batch: {error.line}") from None


@router.get("")
def list_messages(
    queue: QueueName,
    parts: Given,
    found: Reader,
    state: Annotated[State, Query(description="Which ones")] = "waiting",
    limit: Limit = 50,
    contains: Annotated[str | None, Query(description="JSON that the payload or headers contain")] = None,
) -> Data:
    """List messages with their payloads redacted; dead letters have a route of their own."""
    parts.backend.check_queue(queue)
    return Data(data=find(parts.backend, queue, state, limit, contains, may=found == "operator"))


def find(
    backend: Backend, queue: str, state: str | None, limit: int, contains: str | None, *, may: bool
) -> list[dict[str, Any]]:
    """Return messages of a queue, redacted; `contains`: a JSON object as text. Raises ApiError.

    `may`: also by what is redacted. Whoever sees only `***` could try values until one is found.
    """
    wanted = _wanted(contains)
    if not may and redacted(wanted) != wanted:
        raise ApiError(403, "this token is read-only: what is redacted for it cannot be searched")
    if state == "completed":
        rows = backend.rows("archived", queue=queue, max_count=limit, contains=wanted)
    else:
        rows = backend.rows("messages", queue=queue, max_count=limit, state=state, newest=True, contains=wanted)
    return [shown(row) for row in rows]


def _wanted(contains: str | None) -> Any:
    if not contains:
        return None
    try:
        found = json.loads(contains)
    except (ValueError, RecursionError):
        raise ApiError(422, 'contains must be a JSON object, such as {"user_id": 7}') from None
    if not isinstance(found, dict):
        raise ApiError(422, 'contains must be a JSON object, such as {"user_id": 7}')
    if deeper(found, MAX_DEPTH):
        raise ApiError(422, f"contains is nested deeper than {MAX_DEPTH} levels")
    try:
        json_text(found, "contains")
    except UsageError as error:
        raise ApiError(422, str(error)) from None
    return found


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of a message as answers have it: JSON, and its payload, headers and errors redacted."""
    hidden = ("payload", "headers", "error", "failures", "result")
    data: dict[str, Any] = plain(row)
    return {name: redacted(value) if name in hidden else value for name, value in data.items()}


@router.get("/{msg_id}")
def message(
    queue: QueueName,
    msg_id: MessageId,
    parts: Given,
    found: Reader,
    full: Annotated[bool, Query(description="The payload as it is: operators only, and noted in the audit")] = False,
) -> Data:
    """Return one message in whatever state, with its failures."""
    return Data(data=look_up(parts.backend, queue, number(msg_id), full=full, may=found == "operator"))


def look_up(backend: Backend, queue: str, msg_id: int, *, full: bool, may: bool) -> dict[str, Any]:
    """Return one message; `full`: not redacted, which only who `may` gets and the audit notes. Raises ApiError."""
    backend.check_queue(queue)
    rows = backend.rows("message", queue=queue, msg_id=msg_id)
    if not rows:
        raise ApiError(404, f"queue {queue!r} has no message {msg_id}")
    # A redriven dead letter and its successor have ids of their own; an id that was used twice shows the newest life.
    row = max(rows, key=lambda one: one["enqueued_at"])
    if row.get("has_result"):
        kept = backend.rows("result", queue=queue, msg_id=msg_id)
        row["result"] = kept[0]["value"] if kept else None
    if not full:
        return {"queue": queue, **shown(row)}
    if not may:
        raise ApiError(403, "this token is read-only: payloads are redacted for it")
    backend.rows("note_reading", queue=queue, msg_id=msg_id)
    return {"queue": queue, **plain(row)}


@router.delete("/{msg_id}")
def cancel(queue: QueueName, msg_id: MessageId, parts: Given, _: Operator) -> Data:
    """Cancel a message that waits or runs; it goes to the archive."""
    parts.backend.check_queue(queue)
    if not parts.backend.value("cancel", queue=queue, msg_id=number(msg_id)):
        raise ApiError(404, f"queue {queue!r} has no live message {msg_id}")
    parts.backend.forget()
    return Data(data={"cancelled": msg_id})


@router.post("/{msg_id}/complete")
def complete(queue: QueueName, msg_id: MessageId, parts: Given, _: Operator) -> Data:
    """Settle a message by hand, as done."""
    parts.backend.check_queue(queue)
    if not parts.backend.value("complete", queue=queue, msg_id=number(msg_id)):
        raise ApiError(404, f"queue {queue!r} has no live message {msg_id}")
    parts.backend.forget()
    return Data(data={"completed": msg_id})
