"""Numbers, ages and plots as a page shows them: plain functions of what the database said."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, NamedTuple

MINUTES = 60
WIDTH, HEIGHT = 600, 80
_TOP = 6


class Plot(NamedTuple):
    """Paths of SVG in a box of `WIDTH` by `HEIGHT`: runs in each minute, the failed ones; and the highest minute."""

    runs: str
    failed: str
    peak: int


def plot(history: list[list[int]], now: float | None = None) -> Plot:
    """Return the plot of the last hour; `history`: [epoch seconds of the minute, done, retried, dead or lost]."""
    last = int((time.time() if now is None else now) // 60)
    runs, failed = [0] * MINUTES, [0] * MINUTES
    for at, done, retried, dead in history:
        place = MINUTES - 1 - (last - at // 60)
        if 0 <= place < MINUTES:
            runs[place] = done + retried + dead
            failed[place] = retried + dead
    peak = max(runs)
    return Plot(_area(runs, peak), _area(failed, peak) if any(failed) else "", peak)


def _area(values: list[int], peak: int) -> str:
    step = WIDTH / (len(values) - 1)
    points = [
        f"{round(place * step, 1):g},{round(HEIGHT - (HEIGHT - _TOP) * value / peak, 1) if peak else HEIGHT:g}"
        for place, value in enumerate(values)
    ]
    # It begins and ends outside the box, so that its line has no walls.
    first, last = points[0].partition(",")[2], points[-1].partition(",")[2]
    return f"M-9,{HEIGHT} L-9,{first} L{' L'.join(points)} L{WIDTH + 9},{last} L{WIDTH + 9},{HEIGHT} Z"


def count(value: int | None, capped: bool = False) -> str:
    """Return a number of messages: 12,345, or as an estimate about 1.2 M."""
    if value is None:
        return "–"
    if not capped or value <= 10_000:
        return f"{value:,}"
    return f"≈ {value / 1e6:.1f} M" if value >= 1e6 else f"≈ {value / 1e3:.0f} k"


def age(seconds: float | None) -> str:
    """Return how long ago something was: 12 s, 3 m 4 s, 2 h 5 m, 4 d 3 h."""
    if seconds is None:
        return "–"
    total = max(int(seconds), 0)
    for large, unit, small, part in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if total >= large:
            rest = total % large // small
            return f"{total // large} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{total} s"


def percent(part: float | None) -> str:
    """Return the part of runs that failed."""
    if part is None:
        return "–"
    return f"{part * 100:.0f} %" if part in (0, 1) or part >= 0.1 else f"{part * 100:.1f} %"


def rate(per_minute: float | None) -> str:
    """Return runs per minute."""
    if not per_minute:
        return "0"
    return f"{per_minute:,.0f}" if per_minute >= 10 else f"{per_minute:.1f}"


def moment(value: Any) -> str:
    """Return a time, which may be an ISO 8601 text, in UTC; an empty text for none."""
    if not value:
        return ""
    try:
        found = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        return str(value)
    return found.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def since(value: Any) -> str:
    """Return how long ago a time was."""
    try:
        found = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        return ""
    seconds = (datetime.now(UTC) - found).total_seconds()
    return f"in {age(-seconds)}" if seconds < -1 else f"{age(seconds)} ago"


def state_of(queue: dict[str, Any]) -> tuple[str, str]:
    """Return the word for a queue's state and what stands behind it."""
    if queue["paused_at"]:
        return "paused", queue["pause_reason"] or ""
    if queue["broken_until"]:
        return "breaker open", queue["broken_reason"] or ""
    return "", ""


def cells(queue: dict[str, Any]) -> dict[str, str]:
    """Return what a card shows of a queue, by the names of its cells; the live page replaces exactly these."""
    word, why = state_of(queue)
    return {
        "waiting": count(queue["waiting"], queue["capped"]),
        "delayed": count(queue["delayed"], queue["capped"]),
        "running": count(queue["running"]),
        "dead": count(queue["dead"], queue["capped"]),
        "oldest": age(queue["oldest_seconds"]),
        "rate": rate(queue["rate"]),
        "errors": percent(queue["error_rate"]),
        "completed": count(queue["completed"]),
        "state": word,
        "why": why,
    }
