"""Traces by OpenTelemetry (extra `otel`): from the sender's span over claim and handler to the settle, as one trace.

Off until `enable` was called; what is off costs one look at a flag. The context travels in the message's headers as
W3C Trace Context says (`traceparent`, `tracestate`), so that a message sent by plain `pgmq.send` with these headers
belongs to its sender's trace too. Names of spans and attributes follow OpenTelemetry's semantic conventions for
messaging. No span holds a payload, nor the text of an error, which may quote one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from queue_worker.errors import ConfigError
from queue_worker.message import Ack, DeadLetter, Message, Outcome, Retry

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

HEADERS = ("traceparent", "tracestate")

_NOTHING: dict[str, str] = {}
_OUTCOMES = {Ack: "done", Retry: "retried", DeadLetter: "dead"}


class _State:
    """Whether traces are on, and what makes them."""

    tracer: Tracer | None = None
    shutdown: Callable[[], Any] | None = None
    lock = threading.Lock()


def on() -> bool:
    """Whether traces are made."""
    return _State.tracer is not None


def enable(*, export: bool = False) -> None:
    """Make traces from now on, with the tracer provider that the program has set.

    `export`: where it has set none, send them by OTLP over HTTP to where the variables of OpenTelemetry say
    (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME). Raises ConfigError without the extra `otel`.
    """
    try:
        from opentelemetry import trace

        if export and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            _export()
    except ImportError as error:
        raise ConfigError(f"traces need an extra ({error.name}): pip install 'queue-worker[otel]'") from None
    _State.tracer = trace.get_tracer("queue_worker")


def disable() -> None:
    """Make no more traces; those that were made and not sent are sent."""
    with _State.lock:
        _State.tracer = None
        shutdown, _State.shutdown = _State.shutdown, None
    if shutdown is not None:
        shutdown()


def _export() -> None:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # What the environment says of the resource wins over this.
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "queue_worker"}).merge(Resource.create()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    _State.shutdown = provider.shutdown


# ------------------------------------------------------------------------------------------------------------ send


@contextmanager
def _sending(queue: str, tracer: Tracer) -> Iterator[dict[str, str]]:
    from opentelemetry.trace import SpanKind, Status, StatusCode

    with tracer.start_as_current_span(
        f"send {queue}",
        kind=SpanKind.PRODUCER,
        attributes=_attributes(queue, "send", "send"),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        carrier: dict[str, str] = {}
        _propagator().inject(carrier)
        try:
            yield carrier
        except BaseException as error:
            # The database quotes what it refuses.
            _failed(span, error, Status(StatusCode.ERROR, type(error).__name__))
            raise


def sending(queue: str) -> AbstractContextManager[dict[str, str]]:
    """Open a span for what is sent within the block; yields the headers that carry it, none where traces are off."""
    return nullcontext(_NOTHING) if _State.tracer is None else _sending(queue, _State.tracer)


def carry(params: dict[str, Any], carrier: Mapping[str, str]) -> dict[str, Any]:
    """Return arguments of SQL `send`, or one item of `send_batch`, with the headers of `carrier` added."""
    if not carrier:
        return params
    # The sender's own headers of these names mean another trace, and win.
    return {**params, "headers": {**carrier, **(params.get("headers") or {})}}


@contextmanager
def incoming(headers: Mapping[str, str]) -> Iterator[None]:
    """Run the block within the trace that the headers of an HTTP request carry."""
    if _State.tracer is None:
        yield
        return
    from opentelemetry.context import attach, detach

    token = attach(_propagator().extract({name: headers[name] for name in HEADERS if name in headers}))
    try:
        yield
    finally:
        detach(token)


# ------------------------------------------------------------------------------------------ claim, handle, settle


def claimed(messages: Sequence[Message], since: int) -> None:
    """Make the span of each claimed message's claim, which began at `since` (nanoseconds since 1970)."""
    tracer = _State.tracer
    if tracer is None:
        return
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind, set_span_in_context

    for message in messages:
        carrier = {name: value for name in HEADERS if isinstance(value := message.headers.get(name), str)}
        span = tracer.start_span(
            f"claim {message.queue}",
            _propagator().extract(carrier, Context()),
            SpanKind.CONSUMER,
            _of(message, "claim", "receive"),
            start_time=since,
        )
        span.end()
        message.trace = set_span_in_context(span, Context())


@contextmanager
def _handling(tracer: Tracer, messages: Sequence[Message]) -> Iterator[None]:
    from opentelemetry.trace import Link, SpanKind, Status, StatusCode, get_current_span

    first = messages[0]
    # A batch has many senders: the first one's trace goes on, the others are linked.
    links = [Link(get_current_span(one.trace).get_span_context()) for one in messages[1:] if one.trace is not None]
    attributes = _of(first, "handle", "process") | {"messaging.batch.message_count": len(messages)}
    with tracer.start_as_current_span(
        f"handle {first.queue}",
        first.trace,
        SpanKind.CONSUMER,
        attributes if len(messages) > 1 else _of(first, "handle", "process"),
        links,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except BaseException as error:
            _failed(span, error, Status(StatusCode.ERROR, type(error).__name__))
            raise


def handling(messages: Sequence[Message]) -> AbstractContextManager[None]:
    """Open a span for the handler that runs within the block; it is the current one there."""
    tracer = _State.tracer
    return nullcontext() if tracer is None or not messages else _handling(tracer, messages)


def _failed(span: Span, error: BaseException, status: Any) -> None:
    span.set_attribute("error.type", type(error).__name__)
    span.set_status(status)


def settled(message: Message, outcome: Outcome | None, since: int) -> None:
    """Make the span of a settlement that began at `since` (nanoseconds since 1970) and has committed."""
    tracer = _State.tracer
    if tracer is None or message.trace is None:
        return
    from opentelemetry.trace import SpanKind

    attributes = _of(message, "settle", "settle")
    attributes["queue_worker.outcome"] = _OUTCOMES.get(type(outcome), "released")
    span = tracer.start_span(f"settle {message.queue}", message.trace, SpanKind.CLIENT, attributes, start_time=since)
    span.end()


def now() -> int:
    """Return nanoseconds since 1970, 0 where traces are off."""
    return 0 if _State.tracer is None else time.time_ns()


def _of(message: Message, name: str, kind: str) -> dict[str, Any]:
    return {
        **_attributes(message.queue, name, kind),
        "messaging.message.id": str(message.receipt.msg_id),
        "queue_worker.attempt": message.attempt,
    }


def _attributes(queue: str, name: str, kind: str) -> dict[str, Any]:
    return {
        "messaging.system": "pgmq",
        "messaging.destination.name": queue,
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
    }


def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()
