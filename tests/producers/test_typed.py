"""A decorated handler is the typed producer of its queue, and still a plain function."""

from __future__ import annotations

import asyncio
import copy
import importlib
import inspect
import pickle
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from queue_worker import App, Job, Outgoing, Producer, Queue
from queue_worker.errors import ConfigError, UsageError
from queue_worker.message import Message, Receipt
from tests.helpers import running, wait_until
from tests.producers import handlers
from tests.producers.handlers import Welcome, welcome
from tests.sql.engine import Engine


def headers(engine: Engine, msg_id: int) -> dict[str, Any]:
    return engine.value("select headers from pgmq.q_QUEUE where msg_id = %s", msg_id) or {}


def job_of(payload: Any) -> Job[Any]:
    return Job(Message("work", Receipt(1, 1, None), b"{}"), payload, 1, None)  # type: ignore[arg-type]


def test_what_is_sent_reaches_the_handler_as_its_model(engine: Engine, dsn: str) -> None:
    got: list[Welcome] = []
    app = App(builtins=False)

    @app.processor("work", cycle=0.1)
    def greet(job: Job[Welcome]) -> None:
        got.append(job.payload)

    assert isinstance(greet.send(Welcome(userId=1)), int)
    greet.send({"userId": 2, "note": "ho"})
    greet.send_batch([Welcome(userId=3), Outgoing({"userId": 4}, delay=0)])
    asyncio.run(greet.asend(Welcome(userId=5)))
    with running(dsn, app):
        wait_until(lambda: len(got) == 5)
    assert sorted(got, key=lambda one: one.user_id) == [
        Welcome(userId=1), Welcome(userId=2, note="ho"), Welcome(userId=3), Welcome(userId=4), Welcome(userId=5),
    ]  # fmt: skip


def test_a_payload_that_does_not_fit_is_refused_when_it_is_sent(engine: Engine) -> None:
    for payload in ({"user_id": "x"}, {}, Queue("work"), 5):
        with pytest.raises(UsageError):
            welcome.send(payload)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="userId: Field required"):
        welcome.send_batch([Welcome(userId=1), {"note": "x"}])
    assert engine.count("queue") == 0


def test_it_is_still_the_plain_function() -> None:
    assert welcome(job_of(Welcome(userId=7))) == 7
    assert welcome.__name__ == "welcome"
    assert welcome.__doc__ == "Greets."
    assert inspect.unwrap(welcome) is welcome.handler  # type: ignore[arg-type]
    assert list(inspect.signature(welcome).parameters) == ["job"]
    assert handlers.app.processors["work"].handler is welcome.handler


def test_another_process_finds_it_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(welcome)) is welcome
    assert copy.deepcopy(welcome) is welcome
    found = getattr(importlib.import_module(welcome.__module__), welcome.handler.__name__)
    assert found(job_of(Welcome(userId=8))) == 8


def test_one_function_serves_two_queues(engine: Engine) -> None:
    app = App(builtins=False)

    @app.processor("work")
    @app.processor("second")
    def handle(job: Job[dict[str, Any]]) -> None: ...

    assert set(app.processors) == {"work", "second"}
    assert app.processors["work"].handler is app.processors["second"].handler
    handle.send({})
    assert engine.count("queue") == 1


def test_the_app_names_the_database_of_its_producers(engine: Engine, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://postgres@127.0.0.1:1/none")
    app = App(builtins=False, database=dsn)

    @app.processor("work")
    def handle(job: Job[Welcome]) -> None: ...

    handle.send(Welcome(userId=1))
    app.queue("work").send({"userId": 2})
    with pytest.raises(UsageError):
        app.queue("work").send({"user": 2})
    assert engine.count("queue") == 2


def test_it_sends_inside_the_callers_transaction(engine: Engine, dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        welcome.send(Welcome(userId=1), connection=connection)
        connection.rollback()
        welcome.send(Welcome(userId=2), connection=connection)
    assert engine.rows("select message ->> 'userId' from pgmq.q_QUEUE") == [("2",)]


# What SQL `send` takes since sql/0012_send.sql.


def test_options_of_the_decorator_are_defaults(engine: Engine) -> None:
    app = App(builtins=False)

    @app.processor("work", priority=5, expires_in="1 day")
    def handle(job: Job[Welcome]) -> None: ...

    assert headers(engine, handle.send(Welcome(userId=1)))["priority"] == 5
    assert "expires_at" in headers(engine, handle.send(Welcome(userId=1)))
    ids = handle.send_batch([Welcome(userId=1), Outgoing(Welcome(userId=1), priority=9)])
    assert [headers(engine, one)["priority"] for one in ids] == [5, 9]
    assert headers(engine, handle.send(Welcome(userId=1), priority=7))["priority"] == 7


def test_unique_by_makes_one_message_for_equal_fields(engine: Engine) -> None:
    app = App(builtins=False)

    @app.processor("work", unique_by=("user_id",), unique_scope="active")
    def handle(job: Job[Welcome]) -> None: ...

    first = handle.send(Welcome(userId=1))
    assert handle.send({"note": "other", "userId": 1}) == first
    assert handle.send(Welcome(userId=2)) != first
    assert handle.send_batch([Welcome(userId=1), Welcome(userId=3)])[0] == first
    assert handle.send(Welcome(userId=1), unique_key="another") != first


def test_unique_makes_one_message_for_equal_payloads_however_they_are_written(engine: Engine) -> None:
    app = App(builtins=False)

    @app.processor("work", unique=True)
    def handle(job: Job[Welcome]) -> None: ...

    first = handle.send(Welcome(userId=1))
    assert handle.send({"userId": 1}) == first
    assert handle.send({"userId": "1", "note": "hi"}) == first
    assert handle.send(Welcome(userId=1, note="ho")) != first


class Nothing(BaseModel):
    n: int


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unique_by": ("id",)}, "processor 'work': unique_by 'id' is no field of its model: n"),
        ({"unique_by": "n"}, r"unique_by takes names of fields, as \('n',\)"),
        ({"unique_for": "1 day"}, "unique_mode, unique_scope and unique_for need unique or unique_by"),
        ({"expires_in": "soon"}, "processor 'work': expires_in 'soon': write a duration"),
        ({"priority": "high"}, "processor 'work': priority must be a whole number"),
        ({"timout": 5}, "timout"),
    ],
)
def test_wrong_options_are_refused_where_they_stand(options: dict[str, Any], words: str) -> None:
    def handle(job: Job[Nothing]) -> None: ...

    app = App(builtins=False)
    with pytest.raises(ConfigError, match=words):
        app.processor("work", **options)(handle)
    assert not isinstance(handle, Producer)
