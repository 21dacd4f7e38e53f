"""Schedules over HTTP: list, make, remove, pause, resume, run now."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path

from queue_worker.api.access import Operator, Reader
from queue_worker.api.answers import ApiError, Data, documented, plain
from queue_worker.api.backend import Backend
from queue_worker.api.jobs import Body, Given, shown
from queue_worker.errors import UsageError
from queue_worker.schedule_definition import Schedule, check
from queue_worker.schedule_times import rule_of
from queue_worker.sending import payload_of

router = APIRouter(prefix="/api/schedules", tags=["schedules"], responses=documented(404))

Name = Annotated[str, Path(description="Name of the schedule", max_length=200)]
NEXT_TIMES = 3
_FIELDS = {"queue", "cron", "payload", "timezone", "misfire"}
_SCHEDULE = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["queue", "cron"],
                    "properties": {
                        "queue": {"type": "string"},
                        "cron": {"type": "string"},
                        "payload": {"type": "object"},
                        "timezone": {"type": "string"},
                        "misfire": {"type": "string"},
                    },
                },
                "example": {"queue": "reports", "cron": "0 7 * * 1", "payload": {"report": "sales"}},
            }
        },
    }
}


def schedules_of(backend: Backend) -> list[dict[str, Any]]:
    """Return all schedules, each with its next times; raises ApiError."""
    return [{**shown(row), "next_times": plain(_next(row))} for row in backend.rows("list_schedules")]


def _next(row: dict[str, Any]) -> list[datetime]:
    if not row["enabled"]:
        return []
    # Known as soon as a worker has looked at the schedule.
    times: list[datetime] = [row["next_fire_at"]] if row["next_fire_at"] else []
    try:
        rule = rule_of(row["cron"], row["timezone"], row["from_at"])
    except ValueError:
        # Somebody wrote it by hand; its row says what is wrong with it.
        return times
    now = max(row["from_at"], datetime.now(UTC))
    while len(times) < NEXT_TIMES and (following := rule.after(times[-1] if times else now)) is not None:
        times.append(following)
    return times


@router.get("")
def list_schedules(parts: Given, _: Reader) -> Data:
    """List the schedules with their next times and errors."""
    return Data(data=schedules_of(parts.backend))


@router.post("/{name}", status_code=201, openapi_extra=_SCHEDULE)
def put(name: Name, parts: Given, body: Body, _: Operator) -> Data:
    """Make a schedule, or change the one of this name."""
    if not isinstance(body, dict) or not {"queue", "cron"} <= body.keys() <= _FIELDS:
        raise ApiError(422, f"the body must be an object with queue and cron, and of {', '.join(sorted(_FIELDS))}")
    texts = {field: value for field, value in body.items() if field != "payload"}
    wrong = [field for field, value in texts.items() if not isinstance(value, str)]
    if wrong or not isinstance(body.get("payload", {}), dict):
        raise ApiError(422, f"{wrong[0]} must be a text" if wrong else "payload must be a JSON object")
    parts.backend.check_queue(body["queue"])
    try:
        made = check(
            Schedule(
                name,
                body["queue"],
                body["cron"],
                payload_of(body.get("payload", {})),
                body.get("timezone", "UTC"),
                body.get("misfire", "once"),
            )
        )
    except (ValueError, UsageError) as error:
        raise ApiError(422, str(error)) from None
    parts.backend.rows("schedule", **made.arguments())
    return Data(data={"schedule": name})


@router.delete("/{name}")
def remove(name: Name, parts: Given, _: Operator) -> Data:
    """Remove a schedule; what it has sent stays."""
    act_on(parts.backend, "unschedule", name)
    return Data(data={"removed": name})


@router.post("/{name}/run")
def run(name: Name, parts: Given, _: Operator) -> Data:
    """Send the message of a schedule now, beside its times."""
    return Data(data={"jobId": str(act_on(parts.backend, "run_schedule", name))})


@router.post("/{name}/pause")
def pause(name: Name, parts: Given, _: Operator) -> Data:
    """Fire a schedule no more until it is resumed."""
    act_on(parts.backend, "pause_schedule", name)
    return Data(data={"paused": name})


@router.post("/{name}/resume")
def resume(name: Name, parts: Given, _: Operator) -> Data:
    """Fire a paused schedule again, from its next time on."""
    act_on(parts.backend, "resume_schedule", name)
    return Data(data={"resumed": name})


def act_on(backend: Backend, function: str, name: str) -> Any:
    """Call a function on one schedule; raises ApiError 404 where there is none of this name."""
    if name not in {row["name"] for row in backend.rows("list_schedules")}:
        raise ApiError(404, "there is no schedule of this name")
    return backend.value(function, name=name)
