"""What an operator does from a page: forms, each checked, each followed by a redirect."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, Response

from queue_worker.api import schedules
from queue_worker.api.access import COOKIE
from queue_worker.api.answers import ApiError
from queue_worker.api.dashboard.pages import TYPED, confirm, show_dead, show_message
from queue_worker.api.dashboard.visitor import Acts, Looks
from queue_worker.api.dead import edit_dead
from queue_worker.api.values import MAX_DEPTH, deeper, number
from queue_worker.errors import UsageError
from queue_worker.sending import json_text

router = APIRouter(include_in_schema=False)

_SAID = {
    "pause": "paused",
    "resume": "resumed",
    "redrive": "redriven",
    "discard": "discarded",
    "purge": "purged",
}


@router.post("/queues/{queue}/act/{action}")
def on_queue(queue: str, action: str, acts: Acts) -> Response:
    """Pause, resume, redrive, discard or purge a queue."""
    who = acts.visitor
    backend = who.parts.backend
    backend.check_queue(queue)
    if action not in _SAID:
        raise ApiError(404, "there is no such page")
    if action in TYPED and acts.form.get("name", "").strip() != queue:
        return confirm(who, queue, action, error=f"Type the name of the queue, {queue}, to go on.")
    params: dict[str, Any] = {"reason": acts.form.get("reason", "").strip() or None} if action == "pause" else {}
    result = backend.value(action, queue=queue, **params)
    backend.forget()
    return who.back(f"/queues/{queue}", _SAID[action], result if isinstance(result, int) else None)


@router.post("/queues/{queue}/messages/{msg_id}")
def on_message(queue: str, msg_id: str, acts: Acts) -> Response:
    """Show a message in full, cancel it, or settle it as done."""
    who = acts.visitor
    action = acts.form.get("action", "")
    if action == "full":
        return show_message(who, queue, number(msg_id), full=True)
    said = {"cancel": "cancelled", "complete": "completed"}.get(action)
    if said is None:
        raise ApiError(422, "there is no such act")
    who.parts.backend.check_queue(queue)
    if not who.parts.backend.value(action, queue=queue, msg_id=number(msg_id)):
        raise ApiError(404, f"queue {queue!r} has no live message {msg_id}")
    who.parts.backend.forget()
    return who.back(f"/queues/{queue}/messages/{msg_id}", said)


@router.post("/queues/{queue}/dead/{dead_id}")
def on_dead(queue: str, dead_id: str, acts: Acts) -> Response:
    """Show a dead letter in full, replace its payload, send it again, or delete it."""
    who, backend, found = acts.visitor, acts.visitor.parts.backend, number(dead_id)
    match acts.form.get("action"):
        case "full":
            return show_dead(who, queue, found, full=True)
        case "edit" | "edit_retry" as action:
            text = acts.form.get("payload", "")
            payload = _payload(text)
            if isinstance(payload, str):
                return show_dead(who, queue, found, full=True, error=payload, text=text)
            edit_dead(backend, queue, found, payload, retry=action == "edit_retry")
            if action == "edit":
                return who.back(f"/queues/{queue}/dead/{found}", "edited")
            return who.back(f"/queues/{queue}", "redriven", 1)
        case "redrive" | "discard" as action:
            backend.check_queue(queue)
            count = int(backend.value(action, queue=queue, dead_ids=[found]))
            backend.forget()
            return who.back(f"/queues/{queue}", _SAID[action], count)
    raise ApiError(422, "there is no such act")


def _payload(text: str) -> dict[str, Any] | str:
    """Return the payload that was typed, or the line that says what is wrong with it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"This is no JSON: {error}"
    if not isinstance(found, dict):
        return "A payload is a JSON object: {...}"
    if deeper(found, MAX_DEPTH):
        return f"It is nested deeper than {MAX_DEPTH} levels."
    try:
        json_text(found, "the payload")
    except UsageError as error:
        return f"It cannot be stored: {error}"
    return found


@router.post("/schedules")
def on_schedule(acts: Acts) -> Response:
    """Run, pause or resume a schedule."""
    function = {"run": "run_schedule", "pause": "pause_schedule", "resume": "resume_schedule"}.get(
        acts.form.get("action", "")
    )
    if function is None:
        raise ApiError(422, "there is no such act")
    schedules.act_on(acts.visitor.parts.backend, function, acts.form.get("name", ""))
    return acts.visitor.back("/schedules", "ran" if function == "run_schedule" else "schedule")


@router.post("/logout")
def logout(who: Looks) -> Response:
    """End the session of this browser; harmless, so that it asks for no more than the session."""
    if who.cookie:
        who.parts.access.end_session(who.cookie)
    answer = RedirectResponse(f"{who.root}/login", 303)
    answer.delete_cookie(COOKIE, path=who.root or "/", secure=True, httponly=True, samesite="strict")
    return answer
