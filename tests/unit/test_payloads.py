"""Which payloads a processor takes: unknown fields, versions, and several kinds in one queue."""

from __future__ import annotations

import contextlib
import json
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from queue_worker import App, Job
from queue_worker.errors import ConfigError, InvalidPayload, UnsupportedVersion
from queue_worker.payloads import Payloads


class Item(BaseModel):
    name: str = "tea"


class Order(BaseModel):
    amount: Decimal
    item: Item = Item()


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    amount: int


class Card(BaseModel):
    kind: Literal["card"]
    number: int


class Transfer(BaseModel):
    kind: Literal["transfer"]
    iban: str


Payment = Annotated[Card | Transfer, Field(discriminator="kind")]


def parse(model: Any, payload: Any, **options: Any) -> Any:
    return Payloads("mine", model, options).parse(json.dumps(payload))


def refusal(model: Any, payload: Any, **options: Any) -> str:
    with pytest.raises(InvalidPayload) as caught:
        parse(model, payload, **options)
    return str(caught.value)


# ------------------------------------------------------------------------------------------ unknown fields


def test_unknown_fields_are_as_the_model_says_where_the_queue_says_nothing() -> None:
    assert parse(Order, {"amount": 1, "extra": 2}) == Order(amount=Decimal(1))
    assert refusal(Closed, {"amount": 1, "extra": 2}) == "extra: Extra inputs are not permitted"


def test_forbid_refuses_them_at_every_depth() -> None:
    payload = {"amount": 1, "secret": 2, "item": {"colour": "red"}}
    told = refusal(Order, payload, unknown_fields="forbid")
    assert sorted(told.split("; ")) == [
        "item.colour: Extra inputs are not permitted",
        "secret: Extra inputs are not permitted",
    ]
    assert Order.model_config == {}


def test_ignore_takes_what_the_model_itself_forbids() -> None:
    assert parse(Closed, {"amount": 1, "extra": 2}, unknown_fields="ignore") == Closed(amount=1)
    assert Closed.model_config == {"extra": "forbid"}


# ------------------------------------------------------------------------------------------ versions


def test_a_known_version_is_taken_whether_the_model_declares_the_field_or_not() -> None:
    class Declared(BaseModel):
        v: int
        amount: int

    options: dict[str, Any] = {"version_field": "v", "versions": {1, 2}}
    assert parse(Declared, {"v": 2, "amount": 5}, **options).v == 2
    assert parse(Order, {"v": 1, "amount": 5}, **options) == Order(amount=Decimal(5))
    assert parse(dict[str, Any], {"v": 1, "x": 5}, **options) == {"v": 1, "x": 5}


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        ({"v": 3, "amount": 1}, "version 3 in field 'v'; this processor knows 1, 2"),
        ({"v": "1", "amount": 1}, "version '1' in field 'v'; this processor knows 1, 2"),
        ({"v": True, "amount": 1}, "version True in field 'v'; this processor knows 1, 2"),
        ({"v": [1], "amount": 1}, "version [1] in field 'v'; this processor knows 1, 2"),
        ({"v": None, "amount": 1}, "no version in field 'v'; this processor knows 1, 2"),
        ({"amount": 1}, "no version in field 'v'; this processor knows 1, 2"),
        ({"v": 9, "amount": "not a number"}, "version 9 in field 'v'; this processor knows 1, 2"),
    ],
)
def test_an_unknown_version_is_told_before_the_model_is_asked(payload: Any, told: str) -> None:
    with pytest.raises(UnsupportedVersion) as caught:
        parse(Order, payload, version_field="v", versions=[2, 1])
    assert str(caught.value) == told


def test_a_payload_without_a_version_may_be_one_of_them() -> None:
    assert parse(Order, {"amount": 1}, version_field="v", versions={None, 2}) == Order(amount=Decimal(1))


@pytest.mark.parametrize("payload", [[1], "x", None, 5])
def test_what_is_no_object_is_invalid_and_has_no_version(payload: Any) -> None:
    with pytest.raises(InvalidPayload) as caught:
        parse(Order, payload, version_field="v", versions={1})
    assert not isinstance(caught.value, UnsupportedVersion)


def test_the_version_is_no_unknown_field_at_the_top_and_one_below() -> None:
    options: dict[str, Any] = {"unknown_fields": "forbid", "version_field": "v", "versions": {1}}
    long = "0.1234567890123456789012345678"
    found = Payloads("mine", Order, options).parse(f'{{"v": 1, "amount": "{long}"}}')
    assert str(found.amount) == long
    assert parse(Payment, {"v": 1, "kind": "card", "number": 4}, **options) == Card(kind="card", number=4)
    assert refusal(Order, {"v": 1, "amount": 1, "item": {"v": 1}}, **options) == (
        "item.v: Extra inputs are not permitted"
    )
    assert refusal(Order, {"v": 1, "amount": 1, "other": 2}, **options) == "other: Extra inputs are not permitted"
    assert refusal(Order, {"v": 1, "amount": "x"}, **options).startswith("amount: ")


# ------------------------------------------------------------------------------------------ several kinds


def test_several_kinds_are_a_discriminated_union_also_inside_a_handlers_annotation() -> None:
    app = App()

    @app.processor("payments")
    def pay(job: Job[Payment]) -> None: ...

    @app.processor("inline")
    def inline(job: Job[Annotated[Card | Transfer, Field(discriminator="kind")]]) -> None: ...

    for queue in ("payments", "inline"):
        processor = app.processors[queue]
        assert processor.parse('{"kind": "transfer", "iban": "DE1"}') == Transfer(kind="transfer", iban="DE1")
        # Only the member that `kind` names is told about: the discriminator is not lost on the way.
        with pytest.raises(InvalidPayload, match=r"^card\.number: Field required$"):
            processor.parse('{"kind": "card"}')
        with pytest.raises(InvalidPayload, match=r"does not match any of the expected tags: 'card', 'transfer'$"):
            processor.parse('{"kind": "cash"}')


def test_forbid_looks_at_the_member_that_was_chosen() -> None:
    told = refusal(Payment, {"kind": "card", "number": 1, "iban": "DE1"}, unknown_fields="forbid")
    assert told == "card.iban: Extra inputs are not permitted"


# ------------------------------------------------------------------------------------------ hostile, and refused


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["v", "amount", "item"]), inner),
    max_leaves=8,
)


@given(JSON)
def test_any_payload_is_taken_or_invalid(payload: Any) -> None:
    options: dict[str, Any] = {"unknown_fields": "forbid", "version_field": "v", "versions": {1, None}}
    with contextlib.suppress(InvalidPayload):
        parse(Order, payload, **options)


@pytest.mark.parametrize("body", ["", "{", '{"v": 1', "[" * 100_000])
def test_text_that_is_no_json_is_invalid(body: str) -> None:
    for options in ({}, {"version_field": "v", "versions": {1}}):
        with pytest.raises(InvalidPayload):
            Payloads("mine", Order, options).parse(body)


@pytest.mark.parametrize(
    ("model", "options", "told"),
    [
        (Order, {"unknown_fields": "allow"}, "unknown_fields must be 'forbid' or 'ignore'"),
        (dict[str, Any], {"unknown_fields": "forbid"}, "unknown_fields needs a model, not any dict"),
        (Order, {"versions": {1}}, "versions needs version_field, the name of the payload's field"),
        (Order, {"version_field": "v"}, "version_field needs versions, the set of those it knows"),
        (Order, {"version_field": "v", "versions": []}, "version_field needs versions"),
        (Order, {"version_field": "v", "versions": "12"}, "version_field needs versions"),
        (Order, {"version_field": "v", "versions": [object()]}, "versions must be numbers or texts"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused_at_once(model: Any, options: Any, told: str) -> None:
    def handler(job: Any) -> None: ...

    handler.__annotations__ = {"job": Job[model]}
    with pytest.raises(ConfigError) as caught:
        App().processor("mine", **options)(handler)
    assert str(caught.value).startswith(f"processor 'mine': {told}")
    assert "\n" not in str(caught.value)
