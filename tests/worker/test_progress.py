"""Progress is shown while a message runs, at no cost to the handler; more time for a run."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from queue_worker import Job, LeaseLost, events
from queue_worker.message import Message, Receipt
from queue_worker.progress import ProgressReports
from queue_worker.run import Run
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.worker.kit import Door, app_of
from tests.worker.test_cancel import ticks

pytestmark = pytest.mark.conformance(hosted=True)

SHOWN = "select msg_id, done, total, note from queue_worker.progress order by msg_id"


class Steps:
    """A handler that does what the test says, step by step."""

    def __init__(self) -> None:
        self.job: Job[dict[str, Any]] | None = None
        self.ended = threading.Event()

    def handle(self, job: Job[dict[str, Any]]) -> None:
        self.job = job
        assert self.ended.wait(60)


def shown(engine: Engine) -> list[Any]:
    return [tuple(row) for row in engine.rows(SHOWN)]


def written(engine: Engine) -> int:
    return int(engine.value("select count(*) from queue_worker_data.progress"))


def test_progress_is_shown_while_the_message_runs_and_vanishes_with_it(dsn: str, engine: Engine) -> None:
    steps = Steps()
    msg_id = engine.send({})
    with running(dsn, app_of(steps.handle)):
        job = wait_until(lambda: steps.job)
        assert shown(engine) == []
        job.progress(3, 10, "reading")
        wait_until(lambda: shown(engine) == [(msg_id, 3, 10, "reading")])
        job.progress(4)
        wait_until(lambda: shown(engine) == [(msg_id, 4, None, "")])
        assert engine.rows("select queue, msg_id, done from queue_worker.list_progress()") == [("work", msg_id, 4)]
        steps.ended.set()
        wait_until(lambda: engine.count("archive") == 1)
        assert shown(engine) == []
    assert engine.value("select queue_worker.prune_progress('work')") == 1
    assert written(engine) == 0


def test_the_next_attempt_does_not_show_the_progress_of_the_last(dsn: str, engine: Engine) -> None:
    door = Door()

    def handle(job: Job[dict[str, Any]]) -> None:
        if job.attempt == 1:
            job.progress(9, 10)
            wait_until(lambda: shown(engine))
            raise ValueError("nearly")
        door.wait()

    engine.send({})
    with running(dsn, app_of(handle, retry=(0,))):
        door.reached()
        assert (written(engine), shown(engine)) == (1, [])
        door.open()
        wait_until(lambda: engine.count("archive") == 1)


@pytest.mark.conformance(only="direct", hosted=True)
def test_all_jobs_of_all_queues_are_written_in_one_call_and_the_last_value_counts(dsn: str, engine: Engine) -> None:
    engine.rows("select queue_worker.create_queue('other')")
    engine.rows("create table calls (jobs int)")
    engine.rows(
        "create or replace function queue_worker.report_progress(queues text[], ids bigint[], read_cts int[],"
        " enqueued_ats timestamptz[], dones double precision[], totals double precision[], notes text[])"
        " returns void language sql as $$ insert into public.calls values (cardinality(ids));"
        " select queue_worker_data.report_progress(queues, ids, read_cts, enqueued_ats, dones, totals, notes) $$"
    )
    door, lock = Door(), threading.Lock()
    jobs: list[Job[dict[str, Any]]] = []

    def handle(job: Job[dict[str, Any]]) -> None:
        with lock:
            jobs.append(job)
        door.wait()

    engine.fill(3)
    engine.rows("insert into pgmq.q_other (vt, message) select now(), '{}' from generate_series(1, 2)")
    with running(dsn, app_of(handle, "work", "other")):
        door.reached(5)
        for done in range(1000):
            for job in jobs:
                job.progress(done)
        wait_until(lambda: [row[1] for row in shown(engine)] == [999] * 5)
        calls = [row[0] for row in engine.rows("select jobs from calls")]
        door.open()
        wait_until(lambda: engine.count("archive") == 3)
    # A tick may have fallen into the thousand changes; then each was written once more.
    assert len(calls) <= 3
    assert calls[-1] == 5


def test_a_job_is_written_at_most_once_a_second(engine: Engine) -> None:
    calls: list[Any] = []

    class Recorder:
        def call(self, function: str, params: Any) -> None:
            calls.append((params["dones"], params["notes"]))

    class Live:
        def __init__(self, *runs: Any) -> None:
            self.runs = runs

        def live(self) -> list[tuple[int, Any]]:
            return list(enumerate(self.runs))

    run = Run(Message("work", Receipt(1, 1, b"t"), b"{}"), 0.0, 0.0)
    run.job = job = Job(run.message, {}, 1, None)  # type: ignore[arg-type]
    reports = ProgressReports()
    steps = [(0.0, None), (0.5, 1), (1.0, 2), (1.4, 3), (1.5, None), (2.6, None), (9.0, 3), (9.1, 3)]
    for now, done in steps:
        if done is not None:
            job.progress(done)
        reports.write(Recorder(), [Live(run)], now)  # type: ignore[list-item, arg-type]
    assert [dones for dones, _ in calls] == [[1.0], [3.0], [3.0]]


def test_nothing_is_written_for_a_message_that_is_not_held(dsn: str, engine: Engine) -> None:
    engine.fill(2)
    one, two = engine.take(2)
    arguments = [["work", "work", "nowhere"], [one[0], two[0], 1], [one[1], two[1] + 1, 1], [one[2], two[2], one[2]]]
    engine.rows(
        "select queue_worker.report_progress(%s, %s::bigint[], %s::int[], %s::timestamptz[],"
        " %s::float8[], %s::float8[], %s)",
        *arguments,
        [1.0, 2.0, 3.0],
        [None, None, None],
        ["", "", ""],
    )
    assert shown(engine) == [(one[0], 1, None, "")]
    engine.age(one[0])
    assert shown(engine) == []


def test_a_long_run_can_ask_for_more_time(dsn: str, engine: Engine) -> None:
    door = Door()

    def handle(job: Job[dict[str, Any]]) -> None:
        job.extend(600)
        door.wait()

    engine.send({})
    with running(dsn, app_of(handle, timeout=0.3, lease=2)) as worker:
        door.reached()
        first = engine.state(1).vt
        # Long after its own limit and its first lease.
        wait_until(lambda: engine.value("select now() > %s::timestamptz", first), 20)
        ticks(worker, 2)
        door.open()
        wait_until(lambda: engine.count("archive") == 1)
    assert engine.value("select count(*) from queue_worker.failures") == 0


def test_more_time_is_refused_to_a_run_that_has_lost_its_message(dsn: str, engine: Engine) -> None:
    refused: list[BaseException] = []
    door = Door()

    def handle(job: Job[dict[str, Any]]) -> None:
        with pytest.raises(ValueError, match="seconds"):
            job.extend(-1)
        door.wait()
        with pytest.raises(LeaseLost) as caught:
            job.extend(10)
        refused.append(caught.value)

    engine.send({})
    with events.capture("message.retried") as retried, running(dsn, app_of(handle, timeout=0.3, retry=(600,))):
        wait_until(lambda: retried)
        door.open()
        wait_until(lambda: refused)
