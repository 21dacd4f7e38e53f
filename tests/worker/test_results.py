"""What a handler returns is kept where the queue option `results` is on."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from queue_worker import App, Job
from queue_worker.config import load_settings
from queue_worker.executor import Executor
from queue_worker.message import ACK, Ack, Message, Outcome, Receipt
from queue_worker.processor import Processor
from queue_worker.results import MAX_BYTES, ResultRefused, result_text
from queue_worker.retry import RetryPolicy
from queue_worker.run import Run
from queue_worker.threads import ThreadExecutor
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.worker import isolated
from tests.worker.kit import app_of

pytestmark = pytest.mark.conformance


class Model(BaseModel):
    at: datetime
    name: str


@dataclasses.dataclass
class Point:
    x: int
    y: float


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        ({"a": [1, 2.5, "é", True, None]}, '{"a":[1,2.5,"é",true,null]}'),
        (Model(at=datetime(2026, 1, 2, tzinfo=UTC), name="n"), '{"at":"2026-01-02T00:00:00Z","name":"n"}'),
        (Point(1, 2.0), '{"x":1,"y":2.0}'),
        ([float("nan"), float("inf")], "[null,null]"),
        ("\\u0000", '"\\\\u0000"'),
    ],
)
def test_what_is_json_is_kept(value: Any, text: str) -> None:
    assert result_text(value) == text


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "the result of type object is no JSON"),
        ("\ud800", "the result of type str is no JSON"),
        ("a\0", "NUL"),
        ("x" * MAX_BYTES, "result too large"),
    ],
)
def test_what_is_not_is_refused(value: Any, why: str) -> None:
    with pytest.raises(ResultRefused, match=why):
        result_text(value)


def test_the_largest_result_is_kept() -> None:
    assert len(result_text("x" * (MAX_BYTES - 2))) == MAX_BYTES


class Context:
    """Takes the calls of a job."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def call(self, function: str, params: Any) -> list[dict[str, Any]]:
        self.calls.append((function, params))
        return []


def outcome(handler: Any, *, results: bool, context: Context | None = None) -> Outcome | None:
    options = load_settings({"database_url": "postgresql://localhost/x"}).options_for("work", {})
    executor = ThreadExecutor(
        Processor("work", handler),
        RetryPolicy.from_options(options),
        context or Context(),
        concurrency=1,
        settle_mark=1,
        wake=lambda: None,
        results=results,
    )
    executor.submit([Run(Message("work", Receipt(7, 1, b"t"), b"{}"), 0.0, float("inf"))])
    wait_until(lambda: executor.finished)
    executor.close()
    return executor.finished[0].outcome


def test_a_result_travels_with_the_ack_only_where_the_queue_keeps_results() -> None:
    assert outcome(lambda job: {"n": 1}, results=True) == Ack('{"n":1}')
    assert outcome(lambda job: None, results=True) == Ack("null")
    assert outcome(lambda job: {"n": 1}, results=False) is ACK


def test_the_result_of_a_transactional_handler_follows_its_commit() -> None:
    def handle(job: Job[dict[str, Any]]) -> dict[str, int]:
        job.mark_settled()
        return {"n": 1}

    context = Context()
    assert outcome(handle, results=True, context=context) is ACK
    assert context.calls == [("queue_worker.keep_result", {"queue": "work", "msg_id": 7, "value": '{"n":1}'})]
    context.calls.clear()
    assert outcome(handle, results=False, context=context) is ACK
    assert context.calls == []


def test_a_result_that_cannot_be_kept_is_a_failed_attempt(dsn: str, engine: Engine) -> None:
    engine.fill(2)
    with running(dsn, app_of(lambda job: object() if job.msg_id == 1 else "x" * MAX_BYTES, results=True, retry=(600,))):
        wait_until(lambda: engine.value("select count(*) from queue_worker.failures") == 2)
    one, two = engine.rows("select error from queue_worker.failures order by msg_id")
    assert "the result of type object is no JSON" in one[0]
    assert "result too large: 262146 bytes of JSON, at most 262144 are kept" in two[0]


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_every_kind_of_handler_has_results(
    dsn: str, engine: Engine, isolation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen where the outcomes are handed to the queue."""
    app = App(builtins=False)
    if isolation == "process":
        app.processor("work", isolation="process", results=True, cycle=0.1)(isolated.bare)
    else:

        @app.processor("work", batch=True, results=True, cycle=0.1)
        async def handle(jobs: list[Job[dict[str, Any]]]) -> None:
            jobs[0].ack({"msg": jobs[0].msg_id})

    found: list[Outcome | None] = []
    finish = Executor.finish

    def note(self: Executor, run: Run, outcome: Outcome, **options: Any) -> bool:
        first = finish(self, run, outcome, **options)
        if first:
            found.append(outcome)
        return first

    monkeypatch.setattr(Executor, "finish", note)
    engine.send({})
    with running(dsn, app):
        wait_until(lambda: engine.count("archive") == 1, 30)
    assert found == [Ack("null" if isolation == "process" else '{"msg":1}')]


@pytest.mark.conformance(without="rest")
def test_a_member_of_a_batch_that_its_own_transaction_settles_is_counted(engine: Engine, dsn: str) -> None:
    engine.rows("select queue_worker.create_queue('after')")
    messages = '[{"payload": {}}, {"payload": {}}]'
    engine.rows("select queue_worker.send_batch('work', %s, then_queue => 'after')", messages)

    def handle(job: Job[dict[str, Any]]) -> None:
        with job.transaction():
            pass

    with running(dsn, app_of(handle)):
        wait_until(lambda: engine.value("select count(*) from pgmq.q_after") == 1, 20)
    assert engine.rows("select total, done, failed from queue_worker.batches") == [(2, 2, 0)]
