"""The app: one processor for each queue, its own retry curve and error handler, and a recurring task.

As a service: `queue-worker start --app examples.typed_tasks.jobs:app`
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx
from psycopg.types.json import Jsonb
from pydantic import Discriminator, Field, Tag

from examples.typed_tasks.catalogue import (
    DEFAULT_QUEUE,
    KINDS,
    DeliverEvent,
    IndexEndpoint,
    InvokeDispatcher,
    OtherTask,
    PerformRunExecution,
    PerformTaskOperation,
    ScheduleEmail,
    StartRun,
    options,
)
from examples.typed_tasks.send import follow
from queue_worker import App, Job, Reject
from queue_worker.errors import Panic

app = App(builtins=False)


# ------------------------------------------------------------------------------------------------- event-dispatcher


@app.schedule(
    "0 6 * * 1-5", timezone="Europe/Berlin", queue="event-dispatcher", name="dispatcher-1.weekdays",
    payload=InvokeDispatcher(dispatcher_id=1), priority=60,
)  # fmt: skip
@app.processor("event-dispatcher", **options("event-dispatcher"))
def dispatch(job: Job[Annotated[DeliverEvent | InvokeDispatcher, Field(discriminator="kind")]]) -> None:
    """From an event to its dispatchers, and from a dispatcher to a run."""
    match job.payload:
        case DeliverEvent(event_id=event_id):
            deliver(job, event_id)
        case InvokeDispatcher(dispatcher_id=dispatcher_id, event_id=event_id):
            invoke(job, dispatcher_id, event_id)


def deliver(job: Job[Any], event_id: int) -> None:
    """Send one task for each dispatcher of the event."""
    with job.transaction() as tx:
        found = tx.execute(
            "select d.dispatcher_id from typed_tasks.events e join typed_tasks.dispatchers d on d.event_name = e.name"
            " where e.event_id = %s order by 1",
            [event_id],
        )
        for (dispatcher_id,) in found.fetchall():
            follow(job, "invokeDispatcher", InvokeDispatcher(dispatcher_id=dispatcher_id, event_id=event_id))


def invoke(job: Job[Any], dispatcher_id: int, event_id: int | None) -> None:
    """Make a run and start it: the row, the next task and the end of this one commit together."""
    with job.transaction() as tx:
        if tx.execute("select from typed_tasks.dispatchers where dispatcher_id = %s", [dispatcher_id]).rowcount == 0:
            raise Reject(f"there is no dispatcher {dispatcher_id}")
        statement = "insert into typed_tasks.runs (dispatcher_id, event_id) values (%s, %s) returning run_id"
        (run_id,) = tx.execute(statement, [dispatcher_id, event_id]).fetchone()
        follow(job, "startRun", StartRun(run_id=run_id))


# ------------------------------------------------------------------------------------------------------- executions


@app.processor("executions", **options("executions"))
def execute(job: Job[Annotated[StartRun | PerformRunExecution, Field(discriminator="kind")]]) -> None:
    """Two kinds in one queue: the type of the payload says which one it is."""
    match job.payload:
        case StartRun(run_id=run_id):
            start(job, run_id)
        case PerformRunExecution(run_id=run_id):
            perform(job, run_id)


def start(job: Job[Any], run_id: int) -> None:
    """Write the operations of a run down."""
    with job.transaction() as tx:
        tx.execute("update typed_tasks.runs set state = 'started' where run_id = %s", [run_id])
        tx.execute(
            "insert into typed_tasks.operations (run_id, seconds)"
            " select r.run_id, unnest(d.delays) from typed_tasks.runs r join typed_tasks.dispatchers d"
            " using (dispatcher_id) where r.run_id = %s",
            [run_id],
        )
        follow(job, "performRunExecution", PerformRunExecution(run_id=run_id))


def perform(job: Job[Any], run_id: int) -> None:
    """Send one task for each operation of a run."""
    with job.transaction() as tx:
        tx.execute("update typed_tasks.runs set state = 'executing' where run_id = %s", [run_id])
        found = tx.execute("select operation_id, seconds from typed_tasks.operations where run_id = %s", [run_id])
        for operation_id, seconds in found.fetchall():
            task = PerformTaskOperation(operation_id=operation_id, operation="delay", seconds=seconds)
            follow(job, "performTaskOperation", task)


# ------------------------------------------------------------------------------------------------------------ tasks


@app.processor("tasks", **options("tasks"))
def operate(job: Job[PerformTaskOperation]) -> None:
    """Do the operation; the last one of a run ends the run and schedules its mail."""
    task, began = job.payload, datetime.now(UTC)
    if task.operation == "delay":
        time.sleep(task.seconds)
    else:
        tool(task.arguments)
    with job.transaction() as tx:
        ended = tx.execute(
            "update typed_tasks.operations set state = 'done', started_at = %s, ended_at = %s"
            " where operation_id = %s returning run_id",
            [began, datetime.now(UTC), task.operation_id],
        ).fetchone()
        run = ended and _ended_run(tx, ended[0])
        if run:
            run_id, recipient = run
            mail = ScheduleEmail(recipient=recipient, subject=f"Run {run_id} is done")
            follow(job, "scheduleEmail", mail)


def _ended_run(tx: Any, run_id: int | None) -> tuple[int, str] | None:
    """Mark a run without open operations as done; returns its id and recipient if this call did it."""
    # The lock lets two operations that end at the same moment see each other.
    tx.execute("select from typed_tasks.runs where run_id = %s for update", [run_id])
    found: tuple[int, str] | None = tx.execute(
        "update typed_tasks.runs r set state = 'done' from typed_tasks.dispatchers d"
        " where r.run_id = %s and d.dispatcher_id = r.dispatcher_id and r.state <> 'done' and not exists"
        " (select from typed_tasks.operations o where o.run_id = r.run_id and o.state <> 'done')"
        " returning r.run_id, d.recipient",
        [run_id],
    ).fetchone()
    return found


def tool(arguments: tuple[str, ...]) -> None:
    """A command line tool, called as a function: of wrong arguments argparse makes a SystemExit."""
    parser = argparse.ArgumentParser(prog="tool")
    parser.add_argument("--size", type=int, required=True)
    parser.parse_args(arguments)


# --------------------------------------------------------------------------------------------------- internal-queue


@app.processor("internal-queue", **options("internal-queue"))
def mail(job: Job[ScheduleEmail]) -> None:
    """Write the mail into the outbox, together with the end of the message."""
    with job.transaction() as tx:
        row = [job.payload.recipient, job.payload.subject]
        tx.execute("insert into typed_tasks.mails (recipient, subject) values (%s, %s)", row)


# ---------------------------------------------------------------------------------------------------------- default


def kind_of(payload: Any) -> str:
    """Return the tag of a payload of the default queue."""
    kind = payload.get("kind") if isinstance(payload, Mapping) else getattr(payload, "kind", None)
    return "indexEndpoint" if kind == "indexEndpoint" else "other"


AnyTask = Annotated[
    Annotated[IndexEndpoint, Tag("indexEndpoint")] | Annotated[OtherTask, Tag("other")], Discriminator(kind_of)
]


def curve(attempt: int, error: BaseException) -> float:
    """Return the seconds before the next run: 30 * 2^n for n = 0, 1, 2, ...; `attempt` counts from 1."""
    return 30.0 * 2.0 ** (attempt - 1)


@app.processor(DEFAULT_QUEUE, retry=curve, **options(DEFAULT_QUEUE))
async def default(job: Job[AnyTask]) -> None:
    """Index an endpoint. A kind of another queue is handed on to it, and one that nobody knows is a dead letter."""
    match job.payload:
        case IndexEndpoint() as task:
            await index(job, task)
        case OtherTask(kind=kind) if kind in KINDS:
            await asyncio.to_thread(hand_on, job)
        case OtherTask(kind=kind):
            raise Reject(f"no handler for the kind {kind!r}: deploy one, then retry")


async def index(job: Job[Any], task: IndexEndpoint) -> None:
    """Ask the endpoint for its jobs, and keep them."""
    async with httpx.AsyncClient(timeout=20, verify=_tls()) as client:
        answer = await client.get(task.url)
    if answer.status_code in (404, 410):
        raise Reject(f"the endpoint is gone: HTTP {answer.status_code}")
    jobs = answer.raise_for_status().json()
    # The methods of a job block: in a thread they do not hold up the other 99.
    await asyncio.to_thread(keep, job, task.endpoint_id, jobs)


def keep(job: Job[Any], endpoint_id: int, jobs: list[str]) -> None:
    """Write down what an endpoint answered."""
    with job.transaction() as tx:
        statement = "update typed_tasks.endpoints set jobs = %s, indexed_at = now() where endpoint_id = %s"
        tx.execute(statement, [Jsonb(jobs), endpoint_id])


def hand_on(job: Job[Any]) -> None:
    """Send a known kind to its own queue: it was unknown when it was sent, or sent past the catalogue."""
    try:
        with job.transaction():
            follow(job, job.payload.kind, job.payload.model_dump())
    except ValueError:
        raise Reject(f"the payload does not fit the kind {job.payload.kind!r}") from None


@functools.cache
def _tls() -> ssl.SSLContext:
    # Read once: it takes longer than most requests.
    return ssl.create_default_context()


# ----------------------------------------------------------------------------------------------------------- errors


@app.on_error
def report(job: Job[Any], error: Exception) -> Reject | None:
    """Note every failure of every queue. A panic is not run again before a person has looked."""
    panic = isinstance(error, Panic)
    # Of an async handler it runs on the event loop, which waits for it: one short call, no more.
    job.call(
        "typed_tasks.note_error", queue=job.queue, msg_id=job.msg_id, attempt=job.attempt,
        kind=getattr(job.payload, "kind", None), error=str(error), panic=panic,
    )  # fmt: skip
    return Reject("a person must look at this first") if panic else None
