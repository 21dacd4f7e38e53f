"""Durations as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from queue_worker.durations import seconds, whole_seconds
from queue_worker.errors import UsageError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (5, 5),
        (2.5, 2.5),
        (timedelta(minutes=1, milliseconds=500), 60.5),
        ("90", 90),
        ("10s", 10),
        ("5m", 300),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("1w", 604_800),
        ("10 seconds", 10),
        ("1 second", 1),
        ("1 hour", 3600),
        ("2 days", 172_800),
        ("1 hour 30 minutes", 5400),
        (" 1 Hour 5 MIN ", 3900),
        ("365d", 365 * 86_400),
    ],
)
def test_is_read_as_seconds(value: object, expected: float) -> None:
    assert seconds(value, "delay") == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("soon", "delay 'soon': write a duration such as 10s, 5m, 1h, 2d, or whole seconds"),
        ("", "write a duration"),
        ("s", "write a duration"),
        ("1.5s", "write a duration"),
        ("-5", "write a duration"),
        ("5 5s", "write a duration"),
        ("5s 5", "write a duration"),
        ("5 apples", "write a duration"),
        ("٣s", "write a duration"),
        ("9" * 5000, "write a duration"),
        (-1, "delay -1: a duration is 0 or more"),
        (-0.1, "0 or more"),
        (timedelta(seconds=-1), "0 or more"),
        (float("nan"), "0 or more"),
        (float("inf"), "at most 365d"),
        (10**400, "at most 365d"),
        ("366d", "delay '366d': at most 365d"),
        (True, "delay must be seconds, a timedelta or a text such as '10s', not bool"),
        (None, "not NoneType"),
        ([5], "not list"),
    ],
)
def test_what_is_none_is_refused_in_one_line(value: object, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        seconds(value, "delay")  # type: ignore[arg-type]
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 160


def test_whole_seconds_are_rounded_up_so_that_nothing_is_due_too_early() -> None:
    assert [whole_seconds(value, "x") for value in (0, 0.001, 1, 1.2, timedelta(milliseconds=1500))] == [0, 1, 1, 2, 2]
