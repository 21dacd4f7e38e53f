"""What a producer may say: payloads as JSON data, options under the names of SQL."""

from __future__ import annotations

import dataclasses
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel, Field

from queue_worker.errors import UsageError
from queue_worker.sending import fingerprint, payload_of, sql_options

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Welcome(BaseModel):
    user_id: int = Field(alias="userId")
    at: date = date(2030, 1, 31)
    share: float | None = None
    extra: Any = None


@dataclasses.dataclass
class Order:
    number: uuid.UUID
    amount: Decimal


def options(**given: Any) -> dict[str, Any]:
    return sql_options(given, lambda: NOW)


def test_a_model_becomes_json_data_under_the_names_its_consumer_reads() -> None:
    assert payload_of(Welcome(userId=1)) == {"userId": 1, "at": "2030-01-31", "share": None, "extra": None}


def test_a_dataclass_and_a_dict_of_what_json_does_not_know_become_json_data() -> None:
    number = uuid.UUID(int=7)
    expected = {"number": str(number), "amount": "1.50"}
    assert payload_of(Order(number, Decimal("1.50"))) == expected
    assert payload_of({"number": number, "amount": Decimal("1.50")}) == expected
    assert payload_of({"at": NOW, "day": NOW.date(), "tags": ("a", "b")}) == {
        "at": "2030-01-01T00:00:00Z",
        "day": "2030-01-01",
        "tags": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"a": float("nan")}, "the payload cannot be written as JSON: it holds NaN or Infinity"),
        ({"a": [1, {"b": float("-inf")}]}, "it holds NaN or Infinity"),
        (Welcome(userId=1, share=float("inf")), "it holds NaN or Infinity"),
        (Welcome(userId=1, extra=float("nan")), "it holds NaN or Infinity"),
        (Welcome(userId=1, extra={"deep": [float("nan")]}), "it holds NaN or Infinity"),
        (Order(uuid.UUID(int=7), Decimal("NaN")), None),
        ({"a": "\ud800"}, "half of a surrogate pair"),
        ({"a": "x\0y"}, "the character NUL"),
        ({"a\0": 1}, "the character NUL"),
        ({"a": object()}, "cannot be written as JSON"),
        ([1], "a payload is a dict, a pydantic model or a dataclass, not list"),
        ("text", "not str"),
        (None, "not NoneType"),
        (Order, "not type"),
    ],
)
def test_what_postgres_would_refuse_is_refused_in_one_line(payload: Any, words: str | None) -> None:
    if words is None:
        assert payload_of(payload)["amount"] == "NaN"  # a text is harmless
        return
    with pytest.raises(UsageError) as refused:
        payload_of(payload)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_text_that_only_looks_like_an_escape_is_kept() -> None:
    assert payload_of({"a": "\\u0000"}) == {"a": "\\u0000"}


def test_friendly_options_become_those_of_sql() -> None:
    assert options(
        delay="1h30m", retry_delay=timedelta(seconds=10), timeout=2.5, unique_for="1 day", unique_key="k",
        unique_mode="replace", unique_scope="active", priority=5, group_key="g", max_attempts=3,
        headers={"trace": uuid.UUID(int=1)}, expires_in="10 minutes",
    ) == {
        "delay_seconds": 5400, "retry_delay_seconds": 10, "timeout_seconds": 3, "unique_seconds": 86_400,
        "unique_key": "k", "unique_mode": "replace", "unique_scope": "active", "priority": 5, "group_key": "g",
        "max_attempts": 3, "headers": {"trace": str(uuid.UUID(int=1))}, "expires_at": NOW + timedelta(minutes=10),
    }  # fmt: skip


def test_the_names_of_sql_work_too_and_none_is_as_good_as_nothing() -> None:
    assert options(delay_seconds=60, unique_seconds="1m", timeout=None, priority=None) == {
        "delay_seconds": 60,
        "unique_seconds": 60,
    }
    assert options(run_at="2030-01-31T18:00Z") == {"run_at": datetime(2030, 1, 31, 18, tzinfo=UTC)}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dely": 1}, "unknown option 'dely' of send; did you mean delay?"),
        ({"whatever": 1}, "known: delay, run_at, priority"),
        ({"delay": 1, "run_at": NOW}, "give delay or run_at, not both"),
        ({"delay": 1, "delay_seconds": 1}, "not both"),
        ({"expires_at": NOW, "expires_in": 1}, "give expires_in or expires_at, not both"),
        ({"run_at": datetime(2030, 1, 1)}, "run_at 2030-01-01T00:00:00: add the time zone"),  # noqa: DTZ001
        ({"run_at": "tomorrow"}, "run_at 'tomorrow': write a time such as 2030-01-31T18:00Z"),
        ({"run_at": 5}, "run_at must be a datetime, not int"),
        ({"delay": "soon"}, "delay 'soon': write a duration"),
        ({"priority": "high"}, "priority must be a whole number, not 'high'"),
        ({"priority": True}, "priority must be a whole number"),
        ({"max_attempts": 2**40}, "max_attempts must be a whole number"),
        ({"unique_key": 7}, "unique_key must be a text, not int"),
        ({"headers": [1]}, "headers must be a JSON object, not list"),
        ({"headers": {"a": float("nan")}}, "headers cannot be written as JSON: it holds NaN or Infinity"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line_that_names_it(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as refused:
        options(**given)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_fingerprint_is_the_same_whatever_the_order_and_differs_with_the_value() -> None:
    assert fingerprint({"a": 1, "b": [2]}, "x") == fingerprint({"b": [2], "a": 1}, "x")
    assert fingerprint({"a": 1}, "x") != fingerprint({"a": "1"}, "x")
