"""What docs/handlers.md says about failures and payloads is true of its own example."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from queue_worker import App
from queue_worker.testing import DeadLetter, Release, Retry, run

PAGE = (Path(__file__).parent.parent / "docs" / "handlers.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE[PAGE.index("## When it fails") :], re.S)


@pytest.fixture
def page() -> dict[str, Any]:
    """The names that the blocks of both sections define, run in their order."""
    # A real module's name: pydantic and typing look annotations up in it.
    names: dict[str, Any] = {"__name__": __name__}
    for block in BLOCKS:
        exec(compile(block, "handlers.md", "exec", dont_inherit=True), names)
    return names


def judged(page: dict[str, Any], error: BaseException, attempt: int = 1) -> Any:
    processor = page["app"].processors["charge"]

    def fail(job: Any) -> None:
        raise error

    processor.handler = fail
    return run(processor, {}, attempt=attempt).outcome


def test_the_example_retries_as_the_table_says(page: dict[str, Any]) -> None:
    assert isinstance(page["app"], App)
    assert [judged(page, ValueError(), n).delay for n in range(1, 6)] == [60, 120, 240, 480, 960]
    assert judged(page, ValueError(), 6).reason == "attempts"
    assert [judged(page, TimeoutError(), n).delay for n in (1, 2, 3)] == [1, 5, 5]
    assert judged(page, page["CardDeclined"]()).reason == "rejected"
    assert [judged(page, page["httpx"].ConnectError("x"), n).delay for n in (1, 2, 3)] == [60, 60, 60]
    assert [judged(page, KeyError(), n).delay for n in (1, 2)] == [43_200, 43_200]
    assert judged(page, KeyError(), 3).reason == "rejected"


def test_the_example_pauses_and_panics(page: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    found = run(page["app"].processors["charge"], {"shop": "closed"})
    assert found.outcome == Release(600, 600, "the shop is closed")
    outcome = judged(page, SystemExit(3))
    assert isinstance(outcome, DeadLetter)
    assert "on_error: a person must look at this first" in outcome.error
    assert isinstance(judged(page, ValueError()), Retry)
    assert "charge 1 attempt 1 of 6: SystemExit: 3" in capsys.readouterr().err


def test_the_payload_example_holds(page: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    payouts = page["app"].processors["payouts"]
    run(payouts, {"v": 2, "kind": "card", "number": "42"})
    run(payouts, {"v": 1, "kind": "transfer", "iban": "DE1"})
    assert capsys.readouterr().out == "to the card 42\nto the account DE1\n"
    reasons = [
        run(payouts, payload).outcome.reason  # type: ignore[union-attr]
        for payload in (
            {"v": 3, "kind": "card", "number": "42"},
            {"kind": "card", "number": "42"},
            {"v": 1, "kind": "card", "number": "42", "cvv": "123"},
            {"v": 1, "kind": "cash"},
        )
    ]
    assert reasons == ["unsupported_version", "unsupported_version", "invalid", "invalid"]
