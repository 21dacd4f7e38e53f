"""The engine's events as log lines."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from queue_worker import events, log_events
from queue_worker.log import configure
from queue_worker.log_events import FLOOD_LINES, LINES, attach, series_text


class Log:
    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.detach = lambda: None

    def start(self, level: str = "INFO", style: str = "json") -> None:
        configure(level, style, self.stream)
        self.detach = attach()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log.detach()
    configure("INFO", "human", sys.__stderr__)


def test_readiness_tells_each_queue_with_its_retry_series(log: Log) -> None:
    log.start(style="human")
    queue = {
        "queue": "email",
        "cycle_seconds": 5.0,
        "batch_size": 10,
        "concurrency": 5,
        "series": [60, 120, 240, 480, 960],
    }
    events.emit("worker.ready", version="0.1.0", transport="postgres", queues=[queue])
    first, second = log.stream.getvalue().splitlines()
    assert first.endswith("INFO     ready version=0.1.0 transport=postgres")
    assert second.endswith(
        "looks every 5 s, claims 10 at a time, runs 5 at once, retries after 60, 120, 240, 480, 960 s queue=email"
    )


def test_a_done_message_is_one_line_with_the_handler_s_notes(log: Log) -> None:
    log.start()
    note = {"to": "a**@example.com", "queue": "faked", "event": "faked"}
    events.emit("message.done", queue="email", msg_id=7, attempt=1, seconds=0.25, note=note)
    (line,) = log.lines()
    del line["time"]
    assert line == {
        "level": "INFO", "message": "done", "event": "message.done", "queue": "email", "msg_id": 7, "attempt": 1,
        "seconds": 0.25, "to": "a**@example.com",
    }  # fmt: skip


def test_an_error_is_told_in_its_first_line_and_its_last_place(log: Log) -> None:
    log.start()
    error = "ValueError: odd\ncaused by KeyError: 'x'\n  at app/a.py:1 in a\n  at app/b.py:2 in b"
    events.emit(
        "message.retried", queue="email", msg_id=7, attempt=1, seconds=0.1, delay=60.0, error=error, kind="failed"
    )
    (line,) = log.lines()
    assert (line["level"], line["error"], line["where"]) == ("WARNING", "ValueError: odd", "app/b.py:2 in b")


def test_a_level_costs_nothing_for_the_lines_it_leaves_out(log: Log) -> None:
    log.start("WARNING")
    assert not events.wanted("message.done")
    assert not events.wanted("message.started")
    assert events.wanted("message.retried")
    events.emit("message.done", queue="email", msg_id=7)
    assert log.lines() == []


@pytest.mark.parametrize("level", ["TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"])
def test_every_event_is_written_exactly_from_its_level_up(level: str, log: Log) -> None:
    log.start(level)
    order = ["TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
    for name in LINES:
        events.emit(name, queue="email")
    expected = [name for name, (own, _) in LINES.items() if order.index(own) >= order.index(level)]
    assert [line["event"] for line in log.lines()] == expected


def test_events_without_a_text_are_written_for_debugging(log: Log) -> None:
    log.start("DEBUG")
    events.emit("cron.fired", schedule="nightly")
    (line,) = log.lines()
    assert (line["level"], line["message"], line["schedule"]) == ("DEBUG", "cron.fired", "nightly")


def test_nothing_is_written_after_the_end(log: Log) -> None:
    log.start("DEBUG")
    log.detach()
    events.emit("message.done", queue="email")
    assert log.lines() == []
    assert not events.wanted("message.done")


def test_a_flood_of_equal_failures_is_held_back_and_counted(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.start()
    for number in range(1000):
        events.emit("message.dead", queue="email", msg_id=number, error=f"ValueError: {number}")
    events.emit("message.dead", queue="reports", msg_id=1, error="ValueError: 1")
    lines = log.lines()
    assert [line["queue"] for line in lines] == ["email"] * FLOOD_LINES + ["reports"]
    assert "held back" in lines[FLOOD_LINES - 1]["more"]
    monkeypatch.setattr(log_events, "FLOOD_SECONDS", 0.0)
    events.emit("message.dead", queue="email", msg_id=1, error="ValueError: 1")
    assert log.lines()[-1]["suppressed"] == 1000 - FLOOD_LINES


@pytest.mark.parametrize(
    ("delays", "text"),
    [
        ([], "no retries"),
        (None, "retries as its callable says"),
        ([60], "retries after 60 s"),
        ([0.5, 1], "retries after 0.5, 1 s"),
        (range(1, 13), "retries after 1, 2, 3, 4, 5, 6, 7, ..., 12 s"),
    ],
)
def test_a_series_is_written_for_people(delays: list[float], text: str) -> None:
    assert series_text(delays) == text
