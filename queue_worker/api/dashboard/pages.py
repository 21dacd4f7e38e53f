"""What a person looks at."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response

from queue_worker.api.answers import ApiError, plain
from queue_worker.api.dashboard import shapes
from queue_worker.api.dashboard.visitor import Looks, Visitor
from queue_worker.api.dead import find_dead
from queue_worker.api.jobs import find, look_up, shown
from queue_worker.api.queues import status_of
from queue_worker.api.schedules import schedules_of
from queue_worker.api.values import number, redacted

LISTED = 100
TABS = ("waiting", "running", "delayed", "completed", "dead")

router = APIRouter(include_in_schema=False)


@router.get("/")
def overview(who: Looks) -> Response:
    """Return all queues."""
    found = who.parts.backend.snapshot()
    return who.page("overview.html", title="Queues", cards=[card(one) for one in found["queues"]], found=found)


def card(queue: dict[str, Any]) -> dict[str, Any]:
    """Return a queue as its card shows it."""
    return {"queue": queue["queue"], "ordered": queue["ordered"], "plot": shapes.plot(queue["history"])} | {
        "cells": shapes.cells(queue)
    }


@router.get("/queues/{queue}")
def queue_page(
    queue: str,
    who: Looks,
    tab: Annotated[str, Query()] = "waiting",
    contains: Annotated[str, Query(max_length=2000)] = "",
) -> Response:
    """Return the messages of a queue."""
    backend = who.parts.backend
    status = status_of(backend, queue)
    if tab not in TABS:
        raise ApiError(404, "there is no such page")
    error, rows = "", []
    try:
        if tab == "dead":
            rows = [shown(row) for row in backend.rows("list_dead", queue=queue, max_count=LISTED)]
        else:
            rows = find(backend, queue, tab, LISTED, contains, may=who.operator)
    except ApiError as refused:
        if refused.status not in (403, 422) or not contains:
            raise
        error = refused.line
    cards = [card(one) for one in backend.snapshot()["queues"] if one["queue"] == queue]
    return who.page(
        "queue.html",
        title=queue,
        queue=queue,
        status=status,
        tab=tab,
        tabs=TABS,
        contains=contains,
        rows=rows,
        error=error,
        listed=LISTED,
        card=cards[0] if cards else None,
        state=shapes.state_of(status),
    )


@router.get("/queues/{queue}/messages/{msg_id}")
def message_page(queue: str, msg_id: str, who: Looks) -> Response:
    """Return one message, redacted."""
    return show_message(who, queue, number(msg_id), full=False)


def show_message(who: Visitor, queue: str, msg_id: int, *, full: bool) -> Response:
    """Return the page of a message; `full`: its payload as it is."""
    found = look_up(who.parts.backend, queue, msg_id, full=full, may=who.operator)
    if found["state"] == "dead" and found["dead_id"] and not full:
        return show_dead(who, queue, int(found["dead_id"]), full=False)
    return who.page("message.html", title=f"{queue} {msg_id}", queue=queue, one=found, full=full)


@router.get("/queues/{queue}/dead/{dead_id}")
def dead_page(queue: str, dead_id: str, who: Looks) -> Response:
    """Return one dead letter, redacted."""
    return show_dead(who, queue, number(dead_id), full=False)


def show_dead(who: Visitor, queue: str, dead_id: int, *, full: bool, error: str = "", text: str = "") -> Response:
    """Return the page of a dead letter; `full`: its payload as it is, to be edited; `text`: what was typed before."""
    found = find_dead(who.parts.backend, queue, dead_id, full=full, may=who.operator)
    status = 422 if error else 200
    return who.page(
        "dead.html", status, title=f"{queue} dead {dead_id}", queue=queue, one=found, full=full, error=error, text=text
    )


@router.get("/schedules")
def schedules_page(who: Looks) -> Response:
    """Return the schedules."""
    return who.page("schedules.html", title="Schedules", rows=schedules_of(who.parts.backend))


@router.get("/workers")
def workers_page(who: Looks) -> Response:
    """Return the worker processes."""
    return who.page("workers.html", title="Workers", found=who.parts.backend.snapshot())


@router.get("/alerts")
def alerts_page(who: Looks) -> Response:
    """Return what was wrong, newest first, and what makes an alert."""
    rows = plain(who.parts.backend.rows("list_alerts", max_count=LISTED))
    named = [line for line in who.parts.backend.settings.explain() if line.name.startswith("QUEUE_WORKER_ALERT")]
    return who.page("alerts.html", title="Alerts", rows=rows, settings=[(line.name, line.value) for line in named])


@router.get("/audit")
def audit_page(who: Looks) -> Response:
    """Return who did what."""
    rows = plain(who.parts.backend.rows("list_audit", max_count=LISTED))
    return who.page("audit.html", title="Audit", rows=[redacted(row) for row in rows])


_CONFIRM = {
    "pause": ("Pause", "What runs goes on; nothing new is claimed until somebody resumes the queue."),
    "resume": ("Resume", "Workers claim its messages again, also where the circuit breaker had paused it."),
    "redrive": ("Send again", "All its dead letters go back into the queue, with their attempts at 0."),
    "discard": ("Delete dead letters", "All its dead letters are deleted for good."),
    "purge": ("Delete messages", "Every waiting, delayed and running message is deleted for good."),
}
TYPED = ("discard", "purge")
"""What cannot be undone: the name of the queue is to be typed."""


@router.get("/queues/{queue}/confirm/{action}")
def confirm_page(queue: str, action: str, who: Looks) -> Response:
    """Ask whether an act is meant."""
    return confirm(who, queue, action)


def confirm(who: Visitor, queue: str, action: str, error: str = "") -> Response:
    """Return the question before an act on a queue."""
    if action not in _CONFIRM:
        raise ApiError(404, "there is no such page")
    status = status_of(who.parts.backend, queue)
    word, text = _CONFIRM[action]
    return who.page(
        "confirm.html",
        422 if error else 200,
        title=f"{word}: {queue}",
        queue=queue,
        action=action,
        word=word,
        text=text,
        typed=action in TYPED,
        status=status,
        error=error,
    )
