"""The example `typed_tasks`: its command as a whole, and each promise of its catalogue by rows of the database."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from examples.stage import advance
from examples.typed_tasks.catalogue import KINDS, PRIORITIES, IndexEndpoint, ScheduleEmail
from examples.typed_tasks.jobs import app
from examples.typed_tasks.send import Payload, enqueue, enqueue_many
from examples.typed_tasks.service import Endpoint, prepare
from queue_worker.config_options import QueueOptions, resolve
from queue_worker.testing.database import QueueDatabase
from tests.helpers import running, wait_until
from tests.pages import ROOT, Reader, blocks, normal

Db = psycopg.Connection[tuple[Any, ...]]
README = ROOT / "examples" / "typed_tasks" / "README.md"
MAIL = ScheduleEmail(recipient="ann@example.com", subject="Hello")


@pytest.fixture
def ready(db: Db) -> Db:
    """A connection to a database with the tables and queues of the example."""
    prepare(db)
    return db


@pytest.fixture
def worker(dsn: str, ready: Db, tmp_path: Path) -> QueueDatabase:
    """Runs the app's real worker until nothing is due."""
    return QueueDatabase(dsn, tmp_path)


# -------------------------------------------------------------------------------------------------------- the command


def test_the_command_shows_it_all_and_leaves_nothing_but_rows(dsn: str, db: Db, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    variables = {"EXAMPLE_DATABASE_URL": dsn, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "examples.typed_tasks"], env={**os.environ, **variables}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert re.fullmatch(r"(\d+) of \1 checks hold", done.stdout.splitlines()[-1]), done.stdout
    assert list(tmp_path.iterdir()) == [temporary]
    assert list(temporary.iterdir()) == []
    _rows_of_the_show(db)
    shown = next(block.text for block in blocks(README) if block.kind == "text")
    assert set(normal(shown)) <= set(normal(done.stdout))
    assert Reader(tmp_path / "reader", dsn).read(README) >= 3


def _rows_of_the_show(db: Db) -> None:
    assert _all(db, "select recipient, count(*) from typed_tasks.mails where subject like 'Run % is done'"
                    " and recipient = 'ann@example.com' group by 1") == [("ann@example.com", 2)]  # fmt: skip
    assert _all(db, "select jobs from typed_tasks.endpoints") == [(["a", "b"],)] * 2
    assert _all(db, "select queue, reason, payload ->> 'kind' from queue_worker.dead_letters order by 1") == [
        ("default", "rejected", "sendSms"),
        ("tasks", "rejected", "performTaskOperation"),
    ]
    # Three failures of the endpoint, one that is gone, one unknown kind, and the panic.
    assert _all(db, "select panic, count(*) from typed_tasks.errors group by 1 order by 1") == [(False, 5), (True, 1)]
    assert _all(
        db,
        "select headers ->> 'unique_key', message ->> 'subject', vt - enqueued_at > interval '2 hours'"
        ' from pgmq."q_internal-queue" order by 1',
    ) == [
        ("digest:preserve_run_at", "second", False),
        ("digest:replace", "second", True),
        ("digest:unsafe_dedupe", "first", False),
    ]
    assert _all(db, "select count(*) from queue_worker.workers where alive") == [(0,)]


# ------------------------------------------------------------------------------------------------------ the catalogue


@pytest.mark.parametrize(
    ("queue", "concurrency", "attempts", "limit"),
    [
        ("executions", 10, 6, 60),
        ("tasks", 5, 6, 60),
        ("internal-queue", 3, 3, 30),
        ("event-dispatcher", 8, 6, 60),
        ("default", 100, 7, 60),
    ],
)
def test_each_queue_has_its_limits(queue: str, concurrency: int, attempts: int, limit: float) -> None:
    found = _options(queue)
    assert (found.concurrency, found.max_attempts, found.timeout_seconds) == (concurrency, attempts, limit)
    assert found.cycle_seconds == 1


def test_what_a_kind_says_of_itself_agrees_with_its_queue() -> None:
    for kind in KINDS.values():
        found = _options(kind.queue)
        assert kind.attempts in (None, found.max_attempts)
        assert kind.timeout in (None, found.timeout_seconds)
    assert {name: kind.queue for name, kind in KINDS.items()} == {
        "startRun": "executions",
        "performRunExecution": "executions",
        "performTaskOperation": "tasks",
        "scheduleEmail": "internal-queue",
        "deliverEvent": "event-dispatcher",
        "invokeDispatcher": "event-dispatcher",
        "indexEndpoint": "default",
    }


def test_a_worker_has_the_slots_of_all_queues(dsn: str, ready: Db) -> None:
    with running(dsn, app):
        slots = wait_until(lambda: _all(ready, "select slots from queue_worker.workers where alive"))
        names = _all(ready, "select name, queue, cron from queue_worker.schedules")
    assert slots == [(10 + 5 + 3 + 8 + 100,)]
    assert names == [("dispatcher-1.weekdays", "event-dispatcher", "0 6 * * 1-5")]


def test_the_limits_of_a_kind_travel_with_the_message(ready: Db) -> None:
    enqueue("scheduleEmail", MAIL, connection=ready)
    assert _all(ready, 'select message, headers from pgmq."q_internal-queue"') == [
        (MAIL.model_dump(), {"priority": 90, "max_attempts": 3, "timeout_seconds": 30})
    ]


def test_priority_1_runs_first(ready: Db, worker: QueueDatabase) -> None:
    for priority in (4, 2, 3, 1):
        task = ScheduleEmail(recipient="ann@example.com", subject=str(priority))
        enqueue("scheduleEmail", task, priority=priority, connection=ready)
    worker.work(app, "internal-queue", concurrency=1)
    assert _all(ready, "select subject from typed_tasks.mails order by mail_id") == [("1",), ("2",), ("3",), ("4",)]
    assert sorted(PRIORITIES, key=PRIORITIES.__getitem__, reverse=True) == [1, 2, 3, 4]


@pytest.mark.parametrize("priority", [0, 5])
def test_another_priority_is_refused(ready: Db, priority: Any) -> None:
    with pytest.raises(ValueError, match=r"use 1 \(first\) to 4 \(last\)"):
        enqueue("scheduleEmail", MAIL, priority=priority, connection=ready)


# ------------------------------------------------------------------------------------------------------------ sending


def test_a_rollback_sends_nothing(dsn: str, ready: Db) -> None:
    tasks: list[tuple[str, Payload]] = [("scheduleEmail", MAIL), ("startRun", {"run_id": 1}), ("sendSms", {})]
    with psycopg.connect(dsn) as business:
        enqueue("scheduleEmail", MAIL, connection=business)
        assert len(enqueue_many(tasks, connection=business)) == 3
        business.rollback()
    for queue in ("internal-queue", "executions", "default"):
        assert _all(ready, f'select count(*) from pgmq."q_{queue}"') == [(0,)]


def test_a_batch_over_several_queues_keeps_its_order(ready: Db) -> None:
    tasks: list[tuple[str, Payload]] = [
        ("startRun", {"run_id": 1}),
        ("scheduleEmail", MAIL),
        ("performRunExecution", {"run_id": 2}),
        ("startRun", {"run_id": 3}),
    ]
    assert enqueue_many(tasks, connection=ready) == [
        ("executions", 1), ("internal-queue", 1), ("executions", 2), ("executions", 3),
    ]  # fmt: skip
    found = _all(ready, "select message ->> 'kind', message ->> 'run_id' from pgmq.q_executions order by msg_id")
    assert found == [("startRun", "1"), ("performRunExecution", "2"), ("startRun", "3")]


@pytest.mark.parametrize(
    ("kind", "payload"), [("startRun", {"run": 1}), ("startRun", {}), ("startRun", MAIL), ("startRun", {"kind": "x"})]
)
def test_a_payload_that_does_not_fit_its_kind_is_refused(ready: Db, kind: str, payload: Payload) -> None:
    with pytest.raises(ValueError, match=r"[sS]tartRun"):
        enqueue(kind, payload, connection=ready)
    assert _all(ready, "select count(*) from pgmq.q_executions") == [(0,)]


def test_equal_arguments_are_one_message_for_fifteen_minutes(ready: Db, worker: QueueDatabase) -> None:
    with Endpoint() as endpoint:
        task = IndexEndpoint(endpoint_id=1, url=f"{endpoint.url}/jobs")
        first = enqueue("indexEndpoint", task, connection=ready)
        assert enqueue("indexEndpoint", {"url": task.url, "endpoint_id": 1}, connection=ready) == first
        assert [run.outcome for run in worker.work(app, "default")] == ["done"]
    # Done, and still the same; then the clock of the key is put forward, to a second before and after its end.
    assert enqueue("indexEndpoint", task, connection=ready) == first
    _move_keys(ready, 15 * 60 - 10)
    assert enqueue("indexEndpoint", task, connection=ready) == first
    _move_keys(ready, 10)
    assert enqueue("indexEndpoint", task, connection=ready) != first
    assert _all(ready, "select count(*) from pgmq.q_default") == [(1,)]


def _move_keys(db: Db, seconds: float) -> None:
    db.execute("update queue_worker_data.unique_keys set until = until - make_interval(secs => %s)", [seconds])


# ------------------------------------------------------------------------------------------------------------ running


def test_the_retry_curve_is_30_times_powers_of_two(ready: Db, worker: QueueDatabase) -> None:
    delays = [30, 60, 120, 240, 480, 960]
    outcomes = []
    with Endpoint(failures=7) as endpoint:
        enqueue("indexEndpoint", IndexEndpoint(endpoint_id=1, url=f"{endpoint.url}/jobs"), connection=ready)
        for delay in [*delays, 0]:
            outcomes += [run.outcome for run in worker.work(app, "default")]
            advance(ready, "default", delay)
    assert outcomes == ["retried"] * 6 + ["dead"]
    paused = "select round(extract(epoch from retry_at - failed_at)) from queue_worker.failures order by attempt"
    assert [seconds for (seconds,) in _all(ready, paused)] == [*delays, None]
    assert _all(ready, "select reason, attempts from queue_worker.dead_letters") == [("attempts", 7)]


def test_an_unknown_kind_is_a_dead_letter_of_the_default_queue(ready: Db, worker: QueueDatabase) -> None:
    enqueue("sendSms", {"to": "+49 30 1234"}, connection=ready)
    assert [(run.queue, run.outcome, run.attempt) for run in worker.work(app)] == [("default", "dead", 1)]
    assert _all(ready, "select payload, reason, split_part(error, ':', 1) from queue_worker.dead_letters") == [
        ({"kind": "sendSms", "to": "+49 30 1234"}, "rejected", "no handler for the kind 'sendSms'")
    ]


def test_a_known_kind_in_the_default_queue_is_handed_on_with_its_limits(ready: Db, worker: QueueDatabase) -> None:
    ready.execute("select pgmq.send('default', %s::jsonb)", [MAIL.model_dump_json()])
    ready.execute("""select pgmq.send('default', '{"kind": "scheduleEmail", "to": "nobody"}')""")
    worker.work(app, "default")
    assert _all(ready, "select reason, error from queue_worker.dead_letters") == [
        ("rejected", "the payload does not fit the kind 'scheduleEmail'")
    ]
    assert _all(ready, 'select headers from pgmq."q_internal-queue"') == [
        ({"priority": 90, "max_attempts": 3, "timeout_seconds": 30},)
    ]
    worker.work(app, "internal-queue")
    assert _all(ready, "select recipient, subject from typed_tasks.mails") == [("ann@example.com", "Hello")]


def test_a_handler_that_exits_leaves_the_worker_to_the_next_task(ready: Db, worker: QueueDatabase) -> None:
    ready.execute("insert into typed_tasks.operations (seconds) values (0)")
    tasks: list[tuple[str, Payload]] = [
        ("performTaskOperation", {"operation_id": 0, "operation": "tool", "arguments": ["--size", "big"]}),
        ("performTaskOperation", {"operation_id": 1, "operation": "tool", "arguments": ["--size", "3"]}),
    ]
    enqueue_many(tasks, connection=ready)
    outcomes = [(run.msg_id, run.outcome, run.attempt) for run in worker.work(app, "tasks", concurrency=1)]
    assert outcomes == [(1, "dead", 1), (2, "done", 1)]
    assert _all(ready, "select msg_id, kind, error, panic from typed_tasks.errors") == [
        (1, "performTaskOperation", "SystemExit: 2", True)
    ]
    assert _all(ready, "select state from typed_tasks.operations") == [("done",)]


def _options(queue: str) -> QueueOptions:
    return resolve(queue, (), app.processors[queue].options)


def _all(db: Db, statement: str) -> list[tuple[Any, ...]]:
    return db.execute(statement.encode()).fetchall()
