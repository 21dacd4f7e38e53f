"""First half of the show: what producers do. No worker runs yet, so that every message can be looked at."""

from __future__ import annotations

from typing import Any

import psycopg

from examples.stage import Checks
from examples.typed_tasks.catalogue import DeliverEvent, IndexEndpoint, ScheduleEmail, StartRun
from examples.typed_tasks.send import JobKeyMode, Payload, enqueue, enqueue_many
from queue_worker import Queue

Db = psycopg.Connection[Any]


def transactions(url: str, db: Db, check: Checks) -> None:
    """A task commits or rolls back with the rows of the business."""
    print("Sending inside the business transaction", flush=True)
    insert = "insert into typed_tasks.events (name) values ('order.paid') returning event_id"
    with psycopg.connect(url) as business:
        (event_id,) = business.execute(insert).fetchone() or (0,)
        enqueue("deliverEvent", DeliverEvent(event_id=event_id), connection=business)
        business.rollback()
    check("rolled back: neither the event nor its task is there", _waiting(db, "event-dispatcher") == 0)
    with psycopg.connect(url) as business:
        (event_id,) = business.execute(insert).fetchone() or (0,)
        enqueue("deliverEvent", DeliverEvent(event_id=event_id), connection=business)
    check("committed: both are", _waiting(db, "event-dispatcher") == 1)


def batch(url: str, db: Db, check: Checks) -> None:
    """Twenty operations and a mail for each of two people: two statements, one transaction."""
    print("Sending many at once", flush=True)
    rows = db.execute(
        "insert into typed_tasks.operations (seconds) select 0.1 from generate_series(1, 20) returning operation_id"
    ).fetchall()
    tasks: list[tuple[str, Payload]] = [
        ("performTaskOperation", {"operation_id": one, "operation": "delay", "seconds": 0.1}) for (one,) in rows
    ]
    tasks += [("scheduleEmail", ScheduleEmail(recipient=who, subject="Batch")) for who in ("cat@example.com",) * 2]
    with psycopg.connect(url) as business:
        sent = enqueue_many(tasks, connection=business)
    check("22 tasks went to two queues", [queue for queue, _ in sent] == ["tasks"] * 20 + ["internal-queue"] * 2)
    wrong = "nothing was refused"
    try:
        enqueue("startRun", {"run": "one"})
    except ValueError as error:
        wrong = str(error).partition("\n")[0]
    check(f"a payload that does not fit is refused by the producer: {wrong}", "StartRun" in wrong)


def priorities(db: Db, check: Checks) -> None:
    """Priority 1 runs before 4; the worker's number is in the header."""
    print("Priorities: 1 first, 4 last", flush=True)
    sent = {enqueue("startRun", StartRun(run_id=1000 + p), priority=p): p for p in (4, 2, 3, 1)}
    headers = db.execute("select msg_id, headers -> 'priority' from pgmq.q_executions").fetchall()
    said = {sent[msg_id]: number for msg_id, number in headers}
    check(f"as headers: {dict(sorted(said.items()))}", said == {1: 90, 2: 60, 3: 30, 4: None})
    queue, order = Queue("executions"), []
    for message in queue.fetch(4):
        with message:
            order.append(sent[message.msg_id])
    check(f"sent in the order {list(sent.values())}, claimed in the order {order}", order == [1, 2, 3, 4])


def job_keys(db: Db, check: Checks) -> None:
    """What a second task under the same key does, in the three modes."""
    print("Job keys: what a second task of the same key does", flush=True)
    replaced = _twice("replace")
    preserved = _twice("preserve_run_at")
    deduped = _twice("unsafe_dedupe")
    check("replace: new payload, new time", _subject(db, replaced) == ("second", True))
    check("preserve_run_at: new payload, old time", _subject(db, preserved) == ("second", False))
    check("unsafe_dedupe: the first one as it was", _subject(db, deduped) == ("first", False))


def _twice(mode: JobKeyMode) -> int:
    """Send a mail in one hour, and one in three hours under the same key; return the id that both have."""
    ids = {
        enqueue(
            "scheduleEmail", ScheduleEmail(recipient=f"{mode}@example.com", subject=subject),
            job_key=f"digest:{mode}", job_key_mode=mode, delay=delay,
        )
        for subject, delay in (("first", "1h"), ("second", "3h"))
    }  # fmt: skip
    (one,) = ids
    return one


def _subject(db: Db, msg_id: int) -> tuple[Any, ...] | None:
    """The subject of a mail, and whether it is due in more than two hours."""
    statement = (
        "select message ->> 'subject', vt > now() + interval '2 h' from pgmq.\"q_internal-queue\" where msg_id = %s"
    )
    return db.execute(statement, [msg_id]).fetchone()


def unique(db: Db, check: Checks, endpoint: str) -> tuple[int, int]:
    """Equal arguments are one task for 15 minutes. Returns the ids for endpoints that fail, and that are gone."""
    print("Unique by arguments, for 15 minutes", flush=True)
    urls = [f"{endpoint}/jobs", f"{endpoint}/later"]
    for url in urls:
        db.execute("insert into typed_tasks.endpoints (url) values (%s)", [url])
    first = enqueue("indexEndpoint", IndexEndpoint(endpoint_id=1, url=urls[0]))
    again = enqueue("indexEndpoint", {"url": urls[0], "endpoint_id": 1})
    other = enqueue("indexEndpoint", IndexEndpoint(endpoint_id=2, url=urls[1]))
    check("two sends of the same arguments are one message", first == again)
    check("other arguments are another one", other != first)
    return first, other


def unknown(db: Db, check: Checks) -> int:
    """A kind that is not in the catalogue goes to the queue `default`. Returns its id."""
    print("An unknown kind", flush=True)
    msg_id = enqueue("sendSms", {"to": "+49 30 1234"})
    found = db.execute("select message from pgmq.q_default where msg_id = %s", [msg_id]).fetchone()
    check("sendSms is in the queue default", found == ({"kind": "sendSms", "to": "+49 30 1234"},))
    return msg_id


def _waiting(db: Db, queue: str) -> int:
    (count,) = db.execute("select waiting from queue_worker.queue_status(%s)", [queue]).fetchone() or (0,)
    return int(count)
