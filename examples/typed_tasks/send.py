"""The producer: it finds queue, priority and limits of a task in the catalogue, and refuses what does not fit."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from examples.typed_tasks.catalogue import DEFAULT_QUEUE, KINDS, PRIORITIES, Priority, Task
from queue_worker import Job, Outgoing, Queue

JobKeyMode = Literal["replace", "preserve_run_at", "unsafe_dedupe"]
Payload = Task | Mapping[str, Any]


class Routed(NamedTuple):
    """Where a task goes: the queue, the body with its `kind`, and the options of `queue_worker.send`."""

    queue: str
    body: dict[str, Any]
    options: dict[str, Any]


def route(
    kind: str,
    payload: Payload,
    *,
    priority: Priority | None = None,
    job_key: str | None = None,
    job_key_mode: JobKeyMode = "replace",
    **options: Any,
) -> Routed:
    """Look a task up in the catalogue; sends nothing.

    `priority`: 1 (first) to 4, else that of the kind. `job_key`: one waiting message for each key and queue, and
    `job_key_mode` says what a second one does. `options`: those of `Queue.send`, such as `delay="10m"`. A kind that is
    not in the catalogue goes to the queue `default` as it is. Raises ValueError for a payload that does not fit.
    """
    if priority is not None and priority not in PRIORITIES:
        raise ValueError(f"priority {priority!r}: use 1 (first) to 4 (last)")
    known = KINDS.get(kind)
    body = _body(kind, payload)
    if known is not None:
        limits = {"max_attempts": known.attempts, "timeout": known.timeout}
        options = {**{name: value for name, value in limits.items() if value is not None}, **options}
        priority = priority or known.priority
    if job_key is not None:
        options |= {"unique_key": job_key, "unique_mode": job_key_mode}
    elif known is not None and known.unique_for is not None:
        options |= {"unique_key": arguments_key(body), "unique_for": known.unique_for}
    return Routed(known.queue if known else DEFAULT_QUEUE, body, {**options, "priority": PRIORITIES[priority or 4]})


def _body(kind: str, payload: Payload) -> dict[str, Any]:
    known = KINDS.get(kind)
    fields = payload.model_dump() if isinstance(payload, Task) else dict(payload)
    if fields.setdefault("kind", kind) != kind:
        raise ValueError(f"the payload is one of {fields['kind']!r}, not of {kind!r}")
    return known.model.model_validate(fields).model_dump(mode="json") if known else fields


def arguments_key(body: Mapping[str, Any]) -> str:
    """Return the unique key of a kind and its arguments: equal for equal values, whatever the order of the fields."""
    text = json.dumps(body, sort_keys=True)
    return f"{body['kind']}:{hashlib.sha256(text.encode()).hexdigest()}"


@functools.cache
def queue_of(name: str) -> Queue:
    """Return the queue of this name, made once: it reads the settings with its first call."""
    return Queue(name)


def enqueue(kind: str, payload: Payload, *, connection: Any = None, **options: Any) -> int:
    """Send one task and return its id in its queue; `options` are those of `route`.

    `connection`: your own psycopg connection or SQLAlchemy session; the task then commits or rolls back with your rows.
    """
    queue, body, said = route(kind, payload, **options)
    return queue_of(queue).send(body, connection=connection, **said)


def follow(job: Job[Any], kind: str, payload: Payload, **options: Any) -> int:
    """Send one task from a handler; inside `job.transaction()` it commits together with the end of the job."""
    queue, body, said = route(kind, payload, **options)
    return job.send(queue, body, **said)


def enqueue_many(tasks: Iterable[tuple[str, Payload]], *, connection: Any, **options: Any) -> list[tuple[str, int]]:
    """Send many tasks, with one statement for each queue; returns (queue, id) in their order.

    They go into the transaction of `connection`, so that tasks of several queues stand or fall together.
    """
    routed = [route(kind, payload, **options) for kind, payload in tasks]
    ids: dict[str, list[int]] = {}
    for queue in dict.fromkeys(one.queue for one in routed):
        batch = [Outgoing(one.body, **one.options) for one in routed if one.queue == queue]
        # Popped from the end below.
        ids[queue] = queue_of(queue).send_batch(batch, connection=connection)[::-1]
    return [(one.queue, ids[one.queue].pop()) for one in routed]
