"""The engine's events as log lines.

Only events whose level is written are subscribed to, so that the hot path pays nothing for lines nobody reads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from loguru import logger

from queue_worker import events
from queue_worker.log import configured, enabled, words

LINES = {
    "worker.ready": ("INFO", "ready"),
    "worker.stopping": ("INFO", "stopping: running handlers may finish"),
    "worker.stopped": ("INFO", "stopped"),
    "message.started": ("INFO", "started"),
    "message.done": ("INFO", "done"),
    "message.retried": ("WARNING", "failed, will run again"),
    "message.dead": ("ERROR", "dead letter"),
    "message.released": ("DEBUG", "given back, no attempt charged"),
    "message.lease_lost": ("WARNING", "lease lost: the message may run elsewhere"),
    "on_error.failed": ("WARNING", "an on_error callback failed, its opinion was ignored"),
    "message.cancelled": ("INFO", "cancelled while it ran: its handler was told to stop"),
    "message.late_error": ("WARNING", "error after the message was settled"),
    "suspect.started": ("WARNING", "started again: an earlier run ended without an outcome"),
    "database.lost": ("WARNING", "database lost, connecting again"),
    "database.back": ("INFO", "database back"),
    "queue.missing": ("ERROR", "the queue does not exist in the database"),
    "queue.error": ("ERROR", "the database refused a call for this queue"),
    "queue.back": ("INFO", "the queue works again"),
    "breaker.opened": ("ERROR", "the queue pauses by itself"),
    "breaker.closed": ("INFO", "the queue goes on: a trial succeeded"),
    "worker.stuck": ("ERROR", "every slot is held by a handler that outlived its time limit: recycling"),
    "worker.recycling": ("INFO", "recycling: to be started again"),
    "migrate": ("INFO", "migrate"),
    "schedule.fired": ("INFO", "scheduled message sent"),
    "schedule.error": ("WARNING", "schedule failed"),
    "child.failed": ("ERROR", "the process of a handler could not be started"),
    "chore.error": ("WARNING", "housekeeping failed"),
    "alert.fired": ("ERROR", "alert"),
    "alert.cleared": ("INFO", "alert cleared"),
    "alert.undelivered": ("WARNING", "an alert could not be delivered"),
    "alert.error": ("WARNING", "alerts could not be checked"),
    "keeper.error": ("WARNING", "leases could not be extended"),
}
"""Level and text of each event's line; events that are not listed are written at DEBUG under their name."""

FLOOD_LINES = 100
"""Lines of one kind (event, queue, type of error) that are written in one window."""

FLOOD_SECONDS = 60.0
"""Length of that window in seconds."""

_MOST_KINDS = 1000
_SHOWN_DELAYS = 8


def attach() -> Callable[[], None]:
    """Write a line for every event whose level `log.configure` has enabled; returns a function that ends it."""
    writer = _Writer()
    ends = [events.subscribe(name, writer.write) for name, (level, _) in LINES.items() if enabled(level)]
    if enabled("DEBUG"):
        ends.append(events.subscribe("*", writer.write_unlisted))

    def detach() -> None:
        for end in ends:
            end()

    return detach


class _Writer:
    def __init__(self) -> None:
        self._flood = _Flood()

    def write(self, name: str, fields: dict[str, Any]) -> None:
        level, text = LINES[name]
        extras = _extras(fields)
        if name == "worker.ready":
            self._ready(level, extras)
            return
        # Ten thousand poison messages must not fill the disk with ten thousand equal lines.
        if level in ("WARNING", "ERROR") and not self._flood.passes(name, extras):
            return
        _line(name, level, text, extras)

    def write_unlisted(self, name: str, fields: dict[str, Any]) -> None:
        if name not in LINES:
            _line(name, "DEBUG", name, _extras(fields))

    def _ready(self, level: str, extras: dict[str, Any]) -> None:
        queues = extras.pop("queues", ())
        _line("worker.ready", level, "ready", extras)
        for queue in queues:
            retries = queue.get("series", ())
            text = (
                f"looks every {queue['cycle_seconds']:g} s, claims {queue['batch_size']} at a time, "
                f"runs {queue['concurrency']} at once, {series_text(retries)}"
            )
            _line("worker.ready", level, text, {"queue": queue["queue"]})


def series_text(delays: Iterable[float] | None) -> str:
    """Return a retry series for people: `retries after 60, 120, 240, 480, 960 s`; None: a callable decides."""
    if delays is None:
        return "retries as its callable says"
    shown = [f"{delay:g}" for delay in delays]
    if not shown:
        return "no retries"
    if len(shown) > _SHOWN_DELAYS:
        shown = [*shown[: _SHOWN_DELAYS - 1], "...", shown[-1]]
    return f"retries after {', '.join(shown)} s"


def _line(name: str, level: str, text: str, extras: dict[str, Any]) -> None:
    if not configured():
        # The format of a host program, as loguru's own, shows no fields: a line without its queue says nothing.
        text = " ".join([text, *words(extras)])
    logger.bind(**{**extras, "event": name}).log(level, "{}", text)


def _extras(fields: dict[str, Any]) -> dict[str, Any]:
    extras = {name: value for name, value in fields.items() if name != "note"}
    # What the handler annotated never hides what the engine says.
    for name, value in (fields.get("note") or {}).items():
        extras.setdefault(str(name), value)
    error = extras.get("error")
    if isinstance(error, str):
        # The stored error has the rest; of its frames the last one tells where.
        first, *rest = error.splitlines() or [""]
        extras["error"] = first
        frames = [line.strip() for line in rest if line.startswith("  at ")]
        if frames:
            extras["where"] = frames[-1].removeprefix("at ")
    return extras


class _Flood:
    """Lets `FLOOD_LINES` lines of a kind through in a window; the first of the next one tells how many were not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._windows: dict[tuple[str, str, str], tuple[float, int]] = {}

    def passes(self, name: str, extras: dict[str, Any]) -> bool:
        kind = (name, str(extras.get("queue")), str(extras.get("error", "")).partition(":")[0][:60])
        now = time.monotonic()
        with self._lock:
            since, count = self._windows.get(kind, (now, 0))
            if now - since >= FLOOD_SECONDS:
                if count > FLOOD_LINES:
                    extras["suppressed"] = count - FLOOD_LINES
                since, count = now, 0
            if len(self._windows) >= _MOST_KINDS:
                self._windows.clear()
            self._windows[kind] = (since, count + 1)
        if count == FLOOD_LINES - 1:
            extras["more"] = f"lines like this are held back for {FLOOD_SECONDS:g} s"
        return count < FLOOD_LINES
