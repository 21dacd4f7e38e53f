"""Traces: one from the sender to the settle, in the message's headers; and nothing of a payload in them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from queue_worker import App, Job, Queue, tracing
from queue_worker.client import close
from queue_worker.errors import CallRefused
from tests.api.served import served
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.worker.kit import app_of

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = int(PARENT.split("-")[1], 16)


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """The provider of the process can be set once."""
    made = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    trace.set_tracer_provider(provider)
    return made


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    exporter.clear()
    tracing.enable()
    yield exporter
    tracing.disable()
    exporter.clear()
    close()


def named(spans: InMemorySpanExporter, *names: str) -> list[ReadableSpan]:
    """One span of each name, waited for."""
    wanted = [f"{name} work" for name in names]
    wait_until(lambda: set(wanted) <= {span.name for span in spans.get_finished_spans()}, 20)
    return [next(span for span in spans.get_finished_spans() if span.name == name) for name in wanted]


def parent(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id


def test_one_trace_from_the_http_request_of_a_sender_to_the_settle(
    dsn: str, engine: Engine, spans: InMemorySpanExporter
) -> None:
    seen: list[int] = []

    def handle(job: Job[dict[str, Any]]) -> None:
        seen.append(trace.get_current_span().get_span_context().trace_id)

    with served(dsn) as client, running(dsn, app_of(handle)):
        secret = {"password": "the-payload"}
        assert client.post("/api/jobs/work", json=secret, headers={"traceparent": PARENT}).status_code == 201
        send, claim, handled, settle = named(spans, "send", "claim", "handle", "settle")
    ids = [span.get_span_context().trace_id for span in (send, claim, handled, settle)]
    assert ids == [TRACE] * 4
    assert seen == [TRACE]
    assert parent(send) == int(PARENT.split("-")[2], 16)
    assert parent(claim) == send.get_span_context().span_id
    assert parent(handled) == parent(settle) == claim.get_span_context().span_id
    attributes = dict(settle.attributes or {})
    assert attributes["messaging.system"] == "pgmq"
    assert attributes["messaging.destination.name"] == "work"
    assert attributes["queue_worker.outcome"] == "done"
    everything = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "the-payload" not in everything


def test_a_message_sent_by_plain_sql_with_a_traceparent_belongs_to_its_trace(
    dsn: str, engine: Engine, spans: InMemorySpanExporter
) -> None:
    engine.send({}, {"traceparent": PARENT})
    engine.send({}, {"traceparent": 5})
    with running(dsn, app_of(lambda job: None)):
        wait_until(lambda: engine.count("archive") == 2)
        wait_until(lambda: [span.name for span in spans.get_finished_spans()].count("settle work") == 2)
    ids = [span.get_span_context().trace_id for span in spans.get_finished_spans()]
    assert ids.count(TRACE) == 3
    assert len(set(ids)) == 2


def test_a_sender_in_python_and_coroutines_and_batches_carry_it_on(
    dsn: str, engine: Engine, spans: InMemorySpanExporter
) -> None:
    inside: list[int] = []

    async def handle(job: Job[dict[str, Any]]) -> None:
        await asyncio.sleep(0)
        inside.append(trace.get_current_span().get_span_context().trace_id)

    app = App(builtins=False)
    app.processor("work", cycle=0.1)(handle)
    queue = Queue("work", database=dsn)
    tracer = trace.get_tracer("sender")
    with tracer.start_as_current_span("request") as request:
        wanted = request.get_span_context().trace_id
        queue.send({"n": 1})
        queue.send_batch([{"n": 2}, {"n": 3}])
        asyncio.run(queue.asend({"n": 4}))
    with running(dsn, app):
        wait_until(lambda: len(inside) == 4, 20)
    assert inside == [wanted] * 4
    headers = [row[0] for row in engine.rows("select headers from pgmq.a_work")]
    assert all(json.dumps(one).count("traceparent") == 1 for one in headers)


def test_a_failure_names_its_kind_and_not_its_text(dsn: str, engine: Engine, spans: InMemorySpanExporter) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        raise ValueError("the-payload")

    engine.send({})
    with running(dsn, app_of(handle)):
        handled, settle = named(spans, "handle", "settle")
    assert (handled.attributes or {})["error.type"] == "ValueError"
    assert handled.status.status_code is trace.StatusCode.ERROR
    assert (settle.attributes or {})["queue_worker.outcome"] == "retried"
    assert "the-payload" not in "".join(span.to_json() for span in spans.get_finished_spans())


def test_a_send_that_is_refused_names_the_kind_of_error_and_not_its_text(
    dsn: str, engine: Engine, spans: InMemorySpanExporter
) -> None:
    engine.rows(
        "create function refuse() returns trigger language plpgsql as"
        " $$ begin raise exception 'refused: %', new.message; end $$"
    )
    engine.rows("create trigger refuse before insert on pgmq.q_work for each row execute function refuse()")
    with pytest.raises(CallRefused, match="the-payload"):
        Queue("work", database=dsn).send({"secret": "the-payload"})
    [send] = spans.get_finished_spans()
    assert send.status.status_code is trace.StatusCode.ERROR
    assert (send.attributes or {})["error.type"] == "CallRefused"
    assert "the-payload" not in send.to_json()


def test_without_traces_headers_stay_as_they_are(dsn: str, engine: Engine, exporter: InMemorySpanExporter) -> None:
    tracing.disable()
    exporter.clear()
    with trace.get_tracer("sender").start_as_current_span("request"):
        Queue("work", database=dsn).send({})
    close()
    assert engine.value("select headers from pgmq.q_work") is None
    assert [span.name for span in exporter.get_finished_spans()] == ["request"]
