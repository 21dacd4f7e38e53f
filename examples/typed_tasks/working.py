"""Second half of the show: what the service does with the tasks, and what a person does with the service."""

from __future__ import annotations

import functools
import re
from typing import Any

import httpx
import psycopg

from examples.serving import Program
from examples.stage import Checks, advance, until
from examples.typed_tasks.catalogue import QUEUES, InvokeDispatcher, PerformTaskOperation, ScheduleEmail
from examples.typed_tasks.send import enqueue
from examples.typed_tasks.service import Endpoint, cli

Db = psycopg.Connection[Any]


def chain(db: Db, check: Checks) -> None:
    """One event becomes two runs, five tasks each, and two mails."""
    print("One event runs through six kinds in four queues", flush=True)
    until(lambda: _rows(db, "select from typed_tasks.mails where subject like 'Run % is done'") == 2, "two mails")
    check("both runs are done", _rows(db, "select from typed_tasks.runs where state = 'done'") == 2)


def concurrency(db: Db, check: Checks) -> None:
    """No more than five operations ran at once, by what they wrote down themselves."""
    print("Concurrency", flush=True)
    until(lambda: _rows(db, "select from typed_tasks.operations where state <> 'done'") == 0, "all operations")
    (peak,) = db.execute(
        "select max((select count(*) from typed_tasks.operations b"
        " where b.started_at <= a.started_at and b.ended_at > a.started_at)) from typed_tasks.operations a"
    ).fetchone() or (0,)
    check(f"of 23 operations {peak} ran at once at most, 5 are allowed", 1 < peak <= 5)


def retries(db: Db, check: Checks, msg_id: int) -> None:
    """The endpoint fails three times; the clock of the queue is put forward instead of waiting."""
    print("Own retry curve: 30 * 2^n seconds", flush=True)
    for curve in ([30], [30, 60], [30, 60, 120]):
        until(functools.partial(_has_failed, db, msg_id, len(curve)), f"failure {len(curve)}")
        advance(db, "default", curve[-1])
    until(lambda: _rows(db, "select from typed_tasks.endpoints where jobs is not null") == 1, "the endpoint is indexed")
    delays = _delays(db, msg_id)
    check(f"it failed three times, with pauses of {delays} s, and then answered", delays == [30, 60, 120])


def _has_failed(db: Db, msg_id: int, times: int) -> bool:
    return len(_delays(db, msg_id)) == times


def _delays(db: Db, msg_id: int) -> list[int]:
    statement = (
        "select round(extract(epoch from retry_at - failed_at))::int from queue_worker.failures"
        " where queue = 'default' and msg_id = %s order by attempt"
    )
    return [seconds for (seconds,) in db.execute(statement, [msg_id])]


def panics(db: Db, check: Checks) -> None:
    """A tool that calls sys.exit() ends neither the worker nor the message's history."""
    print("A handler that wants to end the process, and the error handler", flush=True)
    task = PerformTaskOperation(operation_id=0, operation="tool", arguments=("--size", "big"))
    msg_id = enqueue("performTaskOperation", task)
    noted = "select panic, error from typed_tasks.errors where queue = 'tasks' and msg_id = %s"
    until(lambda: _dead(db, "tasks", msg_id), "the panic is a dead letter")
    panic, error = db.execute(noted, [msg_id]).fetchone() or (False, "")
    check(f"the error handler was told of a panic: {error}", panic and error.startswith("SystemExit"))
    reason, why = _dead(db, "tasks", msg_id) or ("", "")
    check("and made it a dead letter at once", reason == "rejected" and "a person must look" in why)


def unknown(db: Db, check: Checks, msg_id: int) -> None:
    """A kind without a handler is a dead letter that says so."""
    print("The unknown kind", flush=True)
    reason, why = until(lambda: _dead(db, "default", msg_id), "the unknown kind is a dead letter")
    check(f"it is a dead letter: {why}", reason == "rejected" and "'sendSms'" in why)


def recurring(db: Db, check: Checks) -> None:
    """Schedules: one that the code declares, run by hand, and one every second that fires by itself."""
    print("Recurring tasks", flush=True)
    tick = InvokeDispatcher(dispatcher_id=2).model_dump_json()
    db.execute("select queue_worker.schedule('tick', 'event-dispatcher', 'every 1 second', %s)", [tick])
    listed = dict(db.execute("select name, cron from queue_worker.schedules").fetchall())
    check(f"declared in the code and by SQL: {listed}", listed.get("dispatcher-1.weekdays") == "0 6 * * 1-5")
    cli("schedule", "run", "dispatcher-1.weekdays")
    by_time = "select from typed_tasks.runs where event_id is null and dispatcher_id = %s"
    until(lambda: _rows(db, by_time, 1) == 1, "the schedule that was run by hand")
    until(lambda: _rows(db, by_time, 2) >= 2, "the schedule that fires every second")
    db.execute("select queue_worker.unschedule('tick')")
    check("both have sent their tasks, and these made runs", _rows(db, by_time, 1) == 1 and _rows(db, by_time, 2) >= 2)


def operating(db: Db, check: Checks, gone: int, endpoint: Endpoint) -> None:
    """status, show, cancel, dead list, retry, pause and resume."""
    print("The admin CLI", flush=True)
    later = enqueue("scheduleEmail", ScheduleEmail(recipient="dan@example.com", subject="Never"), delay="1h")
    check("show: a mail that is delayed", cli("show", "internal-queue", str(later))[0]["state"] == "delayed")
    cli("cancel", "internal-queue", str(later))
    check("cancel: it is cancelled", _state(db, "internal-queue", later) == "cancelled")

    letters = {int(one["msg_id"]): one["dead_id"] for one in cli("dead", "list", "default")}
    check("dead list: the endpoint that is gone, and the unknown kind", len(letters) == 2 and gone in letters)
    endpoint.pages.add("/later")
    cli("retry", "default", letters[gone])
    indexed = "select from typed_tasks.endpoints where jobs is not null"
    until(lambda: _rows(db, indexed) == 2, "the endpoint that came back")
    check("retry: it is there again, and indexed", _rows(db, indexed) == 2)

    cli("pause", "internal-queue", "--reason", "no mail today")
    paused = enqueue("scheduleEmail", ScheduleEmail(recipient="eve@example.com", subject="After the pause"))
    (status,) = [one for one in cli("status")["queues"] if one["queue"] == "internal-queue"]
    check("pause: status says so, and the mail waits", status["paused_at"] and status["waiting"] == 1)
    cli("resume", "internal-queue")
    until(lambda: _state(db, "internal-queue", paused) == "archived", "the mail after the pause")
    check("resume: it was sent", _rows(db, "select from typed_tasks.mails where recipient = 'eve@example.com'") == 1)


def metrics(db: Db, check: Checks, api: str) -> None:
    """What Prometheus reads is what the database counted."""
    print(f"Metrics: GET {api}/metrics", flush=True)
    until(
        lambda: not db.execute("select from queue_worker.queues where waiting + running > 0").fetchone(), "all is done"
    )
    text = httpx.get(f"{api}/metrics").raise_for_status().text
    series = re.findall(r'^queue_worker_messages_done_total\{queue="([^"]+)"\} (\S+)$', text, re.M)
    seen = {queue: int(float(value)) for queue, value in series}
    counted = dict(db.execute("select queue, done from queue_worker.counters()").fetchall())
    check(f"queue_worker_messages_done_total: {seen}", seen == counted and set(seen) >= set(QUEUES))


def stop(check: Checks, service: Program) -> None:
    """SIGTERM, as a process manager sends it."""
    check("the service stopped with exit code 0", service.stop() == 0)


def _rows(db: Db, statement: str, *values: Any) -> int:
    return db.execute(statement.encode(), values or None).rowcount


def _state(db: Db, queue: str, msg_id: int) -> Any:
    (state,) = db.execute("select state from queue_worker.message(%s, %s)", [queue, msg_id]).fetchone() or (None,)
    return state


def _dead(db: Db, queue: str, msg_id: int) -> tuple[Any, ...] | None:
    statement = "select reason, error from queue_worker.dead_letters where queue = %s and msg_id = %s"
    return db.execute(statement, [queue, msg_id]).fetchone()
