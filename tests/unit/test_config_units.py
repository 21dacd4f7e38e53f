"""Sizes and lengths of time in settings."""

from __future__ import annotations

from datetime import timedelta

import pytest

from queue_worker.config_options import resolve
from queue_worker.config_units import parse_size, parse_span
from queue_worker.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1_048_576),
        ("512MB", 536_870_912),
        ("512m", 536_870_912),
        ("512 MiB", 536_870_912),
        ("1.5G", 1_610_612_736),
        ("10 bytes", 10),
        ("3k", 3072),
    ],
)
def test_sizes_count_as_process_managers_do(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1 2", "1XB", "0x10", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("1.5h", 5400),
        ("15m", 900),
        ("1h30m", 5400),
        ("1 hour 30 minutes", 5400),
        ("10 seconds", 10),
        ("2 Days", 172_800),
    ],
)
def test_spans_are_written_as_people_do(text: str, seconds: float) -> None:
    assert parse_span(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "10 5", "5 parsecs", "-1h", "1h30", "inf"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a length of time"):
        parse_span(text)


def test_numbers_stay_numbers() -> None:
    assert (parse_size(5), parse_span(1.5)) == (5, 1.5)


def test_times_in_the_decorator_are_durations_as_for_producers() -> None:
    options = resolve("mine", [], {"timeout": "5m", "lease": timedelta(hours=1), "retry_seconds": 1.5})
    assert (options.timeout_seconds, options.lease_seconds, options.retry_seconds) == (300, 3600, 1.5)
    with pytest.raises(ConfigError, match=r"^processor 'mine': timeout '5 fortnights': write a duration"):
        resolve("mine", [], {"timeout": "5 fortnights"})
