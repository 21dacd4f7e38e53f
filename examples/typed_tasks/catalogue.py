"""The catalogue: every kind of task with its payload, its queue and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Priority = Literal[1, 2, 3, 4]
"""1 runs first, 4 last: how producers of typed tasks count."""

PRIORITIES: Mapping[int, int] = MappingProxyType({1: 90, 2: 60, 3: 30, 4: 0})
"""The same as queue_worker counts: 0 to 100, higher first. A message that names none has 0 and so runs as a 4."""

DEFAULT_QUEUE = "default"
"""Where a kind goes that is not in the catalogue."""


class Task(BaseModel):
    """The base of all payloads: `kind` says which one it is, and a field that nobody knows is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str


class DeliverEvent(Task):
    """An event happened: invoke every dispatcher that waits for its name."""

    kind: Literal["deliverEvent"] = "deliverEvent"
    event_id: int


class InvokeDispatcher(Task):
    """Make a run for one dispatcher, for an event or because its time has come."""

    kind: Literal["invokeDispatcher"] = "invokeDispatcher"
    dispatcher_id: int
    event_id: int | None = None


class StartRun(Task):
    """Write down the operations of a run."""

    kind: Literal["startRun"] = "startRun"
    run_id: int


class PerformRunExecution(Task):
    """Hand the operations of a run to the queue `tasks`."""

    kind: Literal["performRunExecution"] = "performRunExecution"
    run_id: int


class PerformTaskOperation(Task):
    """Do one operation of a run: wait so many seconds, or call a tool with arguments."""

    kind: Literal["performTaskOperation"] = "performTaskOperation"
    operation_id: int
    operation: Literal["delay", "tool"]
    seconds: float = 0.0
    arguments: tuple[str, ...] = ()


class ScheduleEmail(Task):
    """Write one mail into the outbox."""

    kind: Literal["scheduleEmail"] = "scheduleEmail"
    recipient: str
    subject: str


class IndexEndpoint(Task):
    """Ask an endpoint over HTTP which jobs it has."""

    kind: Literal["indexEndpoint"] = "indexEndpoint"
    endpoint_id: int
    url: str


class OtherTask(Task):
    """A kind that the handler of the default queue does not run itself; its fields are unknown and kept."""

    model_config = ConfigDict(extra="allow", frozen=True)


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the catalogue.

    `attempts`, `timeout` (seconds) and `unique_for` (seconds; equal payloads are one message for so long) travel with
    each message and beat what its queue says. None: the queue's own.
    """

    model: type[Task]
    queue: str
    priority: Priority
    attempts: int | None = None
    timeout: int | None = None
    unique_for: int | None = None


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "startRun": Kind(StartRun, "executions", 2),
        "performRunExecution": Kind(PerformRunExecution, "executions", 2),
        "performTaskOperation": Kind(PerformTaskOperation, "tasks", 3),
        "scheduleEmail": Kind(ScheduleEmail, "internal-queue", 1, attempts=3, timeout=30),
        "deliverEvent": Kind(DeliverEvent, "event-dispatcher", 2),
        "invokeDispatcher": Kind(InvokeDispatcher, "event-dispatcher", 2),
        "indexEndpoint": Kind(IndexEndpoint, DEFAULT_QUEUE, 4, attempts=7, unique_for=15 * 60),
    }
)

QUEUES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "executions": {"concurrency": 10},
        "tasks": {"concurrency": 5},
        "internal-queue": {"concurrency": 3, "max_attempts": 3, "timeout": 30},
        "event-dispatcher": {"concurrency": 8},
        DEFAULT_QUEUE: {"concurrency": 100, "batch_size": 100, "max_attempts": 7},
    }
)
"""What holds for a whole queue, as options of `@app.processor`; also for messages that plain SQL sends."""


def options(queue: str) -> dict[str, Any]:
    """Return the options of the processor of `queue`: a look every second and one minute to run, and its own row."""
    return {"cycle": 1, "timeout": 60, **QUEUES[queue]}
