"""Live pages: server-sent events with what the cards show, one query for all of them together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from queue_worker.api.answers import ApiError
from queue_worker.api.backend import INTERVAL
from queue_worker.api.dashboard import shapes
from queue_worker.api.dashboard.visitor import Looks, Visitor
from queue_worker.api.guard import Parts

_STEP = 0.25
"""Seconds between two looks at whether the server stops."""

PAGES = 100
"""Live pages at once, half of the connections that are served: others must get through, and probes."""

router = APIRouter(include_in_schema=False)


@router.get("/events")
def events(who: Looks) -> StreamingResponse:
    """Return a stream: `state` with the cells of all cards, `down` while the database is away."""
    if len(who.parts.pages) >= PAGES:
        raise ApiError(503, "too many live pages are open", {"Retry-After": "3"})
    return StreamingResponse(_stream(who), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _stream(who: Visitor) -> AsyncIterator[str]:
    page = object()
    who.parts.pages.add(page)
    try:
        yield "retry: 3000\n\n"
        # A session that ended shows nothing more: its page connects again, and is refused.
        while not who.parts.closing.is_set() and who.lasts():
            yield await _look(who.parts)
            for _ in range(round(INTERVAL / _STEP)):
                if who.parts.closing.is_set():
                    return
                await asyncio.sleep(_STEP)
    finally:
        who.parts.pages.discard(page)


async def _look(parts: Parts) -> str:
    try:
        return _event("state", state(await asyncio.to_thread(parts.backend.snapshot)))
    except ApiError as error:
        return _event("down", {"line": error.line})


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def state(found: dict[str, Any]) -> dict[str, Any]:
    """Return what the script puts into the page: texts and paths, nothing that could be markup."""
    queues = {}
    for queue in found["queues"]:
        plot = shapes.plot(queue["history"])
        queues[queue["queue"]] = {
            **shapes.cells(queue),
            "runs": plot.runs,
            "failed": plot.failed,
            "peak": f"{plot.peak:,}",
        }
    alerts = [f"{one['queue'] or 'all'}: {one['detail']}" for one in found["alerts"]]
    return {"queues": queues, "alerts": alerts, "at": shapes.moment(found["at"])}
