"""In which order that starts which one claim has brought."""

from __future__ import annotations

import datetime
from typing import Any

from queue_worker.message import Message, Receipt, in_order

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def order(*headers: dict[str, Any]) -> list[int]:
    """The ids 0, 1, ... of messages with these headers, as they start; they came in the opposite order."""
    messages = [Message("q", Receipt(number, 1, NOW), "{}", one, 0, 0) for number, one in enumerate(headers)]
    return [message.receipt.msg_id for message in in_order(messages[::-1])]


def test_without_priorities_the_oldest_is_first() -> None:
    assert order({}, {}, {}) == [0, 1, 2]


def test_higher_priorities_are_first_and_within_one_the_oldest() -> None:
    assert order({}, {"priority": 10}, {"priority": 90}, {"priority": 10}, {"priority": 0.5}) == [2, 1, 3, 4, 0]


def test_what_is_no_number_is_none_and_the_range_ends_at_0_and_100() -> None:
    assert order({"priority": "high"}, {"priority": True}, {"priority": -5}, {"priority": 1}) == [3, 0, 1, 2]
    assert order({"priority": 100}, {"priority": 4000}) == [0, 1]


def test_a_group_keeps_its_order_and_counts_with_its_first() -> None:
    first, later = {"group_key": "g", "priority": 20}, {"group_key": "g", "priority": 95}
    assert order({}, first, {"priority": 90}, later, {"priority": 20}) == [2, 1, 3, 4, 0]
