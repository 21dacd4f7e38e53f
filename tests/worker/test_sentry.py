"""Unexpected errors in Sentry's own test transport: with queue, id and attempt, and without the payload."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sentry_sdk
from pydantic import BaseModel, ValidationError
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from queue_worker import Job, Reject, Retry, events, log_events
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.worker.kit import app_of

# Not in one piece: the lines of source around an error are part of a report.
PERSON = "-".join(["payload", "of", "a", "person"])


class Collected(Transport):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []
        self.texts: list[str] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self.texts.append(envelope.serialize().decode())
        event = envelope.get_event()
        if event is not None:
            self.events.append(dict(event))


@pytest.fixture
def sentry() -> Iterator[Collected]:
    """Set up as a user does, local variables included."""
    transport = Collected()
    sentry_sdk.init(
        dsn="https://key@sentry.invalid/1", transport=transport, send_default_pii=True, default_integrations=False
    )
    yield transport
    sentry_sdk.get_client().close()
    sentry_sdk.init()


def test_an_unexpected_error_carries_the_message_and_not_its_payload(
    dsn: str, engine: Engine, sentry: Collected
) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        secret = job.payload["secret"]
        raise KeyError(f"password={secret[:3]}")

    msg_id = engine.send({"secret": PERSON})
    sentry_sdk.add_breadcrumb(message=PERSON)
    with running(dsn, app_of(handle)):
        wait_until(lambda: sentry.events, 20)
    [event] = sentry.events
    assert event["tags"] == {"queue": "work", "msg_id": str(msg_id), "attempt": 1}
    assert event["exception"]["values"][-1]["type"] == "KeyError"
    assert event["exception"]["values"][-1]["mechanism"]["type"] == "queue_worker"
    frames = event["exception"]["values"][-1]["stacktrace"]["frames"]
    assert frames[-1]["function"] == "handle"
    assert not any("vars" in frame for frame in frames)
    assert PERSON not in "".join(sentry.texts)
    assert "pay" not in json.dumps(event["exception"]["values"][-1]["value"])


class Known(BaseModel):
    amount: int


def quoting(job: Job[dict[str, Any]]) -> None:
    raise ValueError(f"no such person: {job.payload['person']}, {job.payload['amount']}")


def validating(job: Job[dict[str, Any]]) -> None:
    try:
        Known.model_validate(job.payload)
    except ValidationError as error:
        raise RuntimeError("does not fit") from error


@pytest.mark.parametrize(
    ("handler", "wanted"),
    [(quoting, ["no such person: ***, ***"]), (validating, ["1 validation error for Known", "does not fit"])],
)
def test_one_event_without_the_payload_that_an_error_quotes_under_sentrys_own_integrations(
    dsn: str, engine: Engine, sentry: Collected, handler: Callable[[Job[dict[str, Any]]], None], wanted: list[str]
) -> None:
    sentry_sdk.init(dsn="https://key@sentry.invalid/1", transport=sentry, send_default_pii=True, attach_stacktrace=True)
    engine.send({"person": "payload-of-a-person", "amount": "4,711 roubles"})
    detach = log_events.attach()
    with events.capture("message.dead") as dead, running(dsn, app_of(handler, max_attempts=1)):
        wait_until(lambda: dead, 20)
    detach()
    [event] = sentry.events
    assert [one["value"] for one in event["exception"]["values"]] == wanted
    assert event["tags"]["queue"] == "work"
    assert not [value for value in ("of-a-person", "roubles") if value in "".join(sentry.texts)]


@pytest.mark.parametrize("error", [Retry("later"), Reject("never")])
def test_what_a_handler_raises_on_purpose_is_no_error(
    dsn: str, engine: Engine, sentry: Collected, error: Exception
) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        raise error

    engine.send({})
    with running(dsn, app_of(handle)):
        wait_until(lambda: engine.value("select count(*) from queue_worker.failures") == 1, 20)
    assert sentry.events == []
