"""Leases are kept while a handler runs, and whoever lost one changes nothing; time limits; stuck threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from queue_worker import Job, events
from queue_worker.broker import DatabaseContext
from queue_worker.config import load_settings
from queue_worker.errors import LeaseLost
from queue_worker.executor import Executor
from queue_worker.lease import overdue
from queue_worker.message import Message, Receipt, Release
from queue_worker.processor import Processor
from queue_worker.retry import RetryPolicy
from queue_worker.run import Run
from queue_worker.threads import ThreadExecutor
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.worker.kit import Door, app_of, turns

pytestmark = pytest.mark.conformance


def by_another(engine: Engine) -> tuple[Any, ...]:
    """Let the lease end and claim the message; in one transaction, or the worker might be quicker."""
    engine.rows("begin")
    engine.age()
    new = engine.take_one(suspects=1)
    engine.rows("commit")
    return new


def test_a_handler_that_runs_longer_than_its_lease_keeps_it(dsn: str, engine: Engine) -> None:
    door = Door()
    msg_id = engine.send({})
    with running(dsn, app_of(lambda job: door.wait(), lease=2)):
        door.reached()
        first = engine.state(msg_id).vt
        for _ in range(2):
            before = engine.state(msg_id).vt
            wait_until(lambda before=before: engine.state(msg_id).vt > before)
        # After the first lease it is still hidden, and nobody has claimed it again.
        wait_until(lambda: engine.value("select now() > %s::timestamptz", first), 20)
        assert engine.state(msg_id)[:2] == (1, False)
        door.open()
        wait_until(lambda: engine.count("archive") == 1)
    assert engine.value("select read_ct from pgmq.a_work") == 1
    assert door.arrived == 1


def test_the_result_of_a_lost_lease_is_refused_and_the_new_owners_stands(dsn: str, engine: Engine) -> None:
    door, jobs = Door(), []

    def handle(job: Job[dict[str, Any]]) -> None:
        jobs.append(job)
        door.wait(job.msg_id)
        raise ValueError("too late to matter")

    msg_id = engine.send({})
    with events.capture("message.lease_lost") as lost, running(dsn, app_of(handle, lease=3)):
        door.reached()
        new = by_another(engine)
        wait_until(lambda: lost)
        assert jobs[0].cancelled
        door.open()
        wait_until(lambda: not door.inside)
        assert engine.settle(done=[new]) == {}
    assert lost == [("message.lease_lost", {"queue": "work", "msg_id": msg_id})]
    assert engine.places(msg_id) == ["archive"]
    assert engine.value("select count(*) from queue_worker.failures") == 0


def test_a_lost_lease_that_nobody_noticed_is_refused_at_the_settle(dsn: str, engine: Engine) -> None:
    door = Door()
    msg_id = engine.send({})
    with events.capture("message.lease_lost") as lost, running(dsn, app_of(lambda job: door.wait(), lease=600)):
        door.reached()
        new = by_another(engine)
        door.open()
        wait_until(lambda: lost)
        assert engine.state(msg_id).read_ct == new[1]
    assert len(lost) == 1
    assert engine.settle(done=[new]) == {}


COUNTED = """
create sequence public.calls;
create function public.count_call() returns bigint language sql as $$ select nextval('public.calls') $$;
grant usage on sequence public.calls to service_role;
grant execute on function public.count_call to service_role;
select queue_worker.allow_function('public.count_call');
"""


def test_functions_by_name_are_not_called_for_a_lease_that_is_lost(dsn: str, engine: Engine) -> None:
    """A sequence shows a call that was rolled back too."""
    engine.rows(COUNTED)
    door, refused = Door(), []

    def handle(job: Job[dict[str, Any]]) -> None:
        door.wait()
        try:
            job.finish("public.count_call")
        except LeaseLost as error:
            refused.append(error)
            raise

    engine.send({})
    with running(dsn, app_of(handle, lease=600)):
        door.reached()
        new = by_another(engine)
        door.open()
        wait_until(lambda: refused)
    assert engine.value("select is_called from public.calls") is False
    assert engine.settle(done=[new]) == {}
    assert engine.value("select count(*) from queue_worker.failures") == 0


def test_a_process_that_slept_past_its_lease_goes_on_with_its_own_message(dsn: str, engine: Engine) -> None:
    """As after a pause of the machine: the message is claimed again by the process whose handler still runs."""
    door = Door()
    msg_id = engine.send({})
    with running(dsn, app_of(lambda job: door.wait(), lease=600)) as worker:
        door.reached()
        engine.age()
        wait_until(lambda: engine.state(msg_id).read_ct == 2)
        turns(worker, "work")
        door.open()
        wait_until(lambda: engine.count("archive") == 1)
    assert door.arrived == 1
    assert engine.trouble(msg_id) is None


def test_a_queue_made_anew_under_a_running_handler_is_not_confused_with_the_old_one(dsn: str, engine: Engine) -> None:
    door, seen = Door(), []

    def handle(job: Job[dict[str, Any]]) -> None:
        seen.append(job.payload)
        if job.payload["life"] == 1:
            door.wait()

    engine.send({"life": 1})
    with (
        events.capture("message.lease_lost") as lost,
        events.capture("message.cancelled") as cancelled,
        running(dsn, app_of(handle, lease=600)),
    ):
        door.reached()
        engine.rows("select pgmq.drop_queue('work')")
        engine.create()
        engine.send({"life": 2})
        wait_until(lambda: engine.count("archive") == 1)
        door.open()
        # Told by the refused settle; or by a look before it, which finds the message gone as a cancel takes it away.
        wait_until(lambda: lost or cancelled)
    assert seen == [{"life": 1}, {"life": 2}]
    assert engine.rows("select message from pgmq.a_work") == [({"life": 2},)]


def test_a_time_limit_costs_an_attempt_and_the_late_result_is_refused(dsn: str, engine: Engine) -> None:
    door = Door()
    msg_id = engine.send({})
    app = app_of(lambda job: door.wait(), timeout=0.3, max_attempts=2, retry=(600,), concurrency=2)
    with events.capture("message.retried") as retried, running(dsn, app) as worker:
        wait_until(lambda: retried)
        assert engine.rows("select attempt, kind from queue_worker.failures") == [(1, "timeout")]
        assert engine.trouble(msg_id).failures == 1
        (loop,) = worker.service.workers
        # The thread is busy until it ends, whatever became of its message.
        assert loop.executor.free == 1
        before = engine.state(msg_id)
        door.open()
        wait_until(lambda: loop.executor.free == 2)
        turns(worker, "work")
        assert engine.state(msg_id) == before


def test_the_last_time_limit_makes_a_dead_letter(dsn: str, engine: Engine) -> None:
    door = Door()
    engine.rows("select queue_worker.send('work', '{}', max_attempts => 1, timeout_seconds => 1)")
    with running(dsn, app_of(lambda job: door.wait(), timeout=600)):
        wait_until(lambda: engine.count("dead") == 1)
        door.open()
    (dead,) = engine.rows("select reason, attempts, error from queue_worker.dead_letters")
    assert dead == ("attempts", 1, "timeout: the handler ran longer than 1 s")


def test_a_stuck_thread_does_not_keep_the_next_message_waiting(dsn: str, engine: Engine) -> None:
    door = Door()
    stuck = engine.send({"wait": True})

    def handle(job: Job[dict[str, Any]]) -> None:
        if job.payload:
            door.wait()

    with running(dsn, app_of(handle, timeout=0.3, max_attempts=1, concurrency=2)):
        wait_until(lambda: engine.places(stuck) == ["dead"])
        engine.send({})
        wait_until(lambda: engine.count("archive") == 1)
        door.open()


def test_a_process_whose_threads_are_all_stuck_asks_for_a_restart(dsn: str, engine: Engine) -> None:
    door = Door()
    for _ in range(2):
        engine.send({})
    app = app_of(lambda job: door.wait(), timeout=0.3, max_attempts=1, concurrency=2)
    with events.capture("worker.stuck") as stuck, running(dsn, app) as worker:
        wait_until(lambda: worker.code is not None, 20)
        door.open()
    assert worker.code == 75
    assert stuck[0][1]["queues"] == ["work"]
    assert engine.count("dead") == 2


def test_what_waits_for_half_a_lease_goes_back_uncharged(dsn: str, engine: Engine) -> None:
    door = Door()
    with (
        events.capture("message.released") as released,
        running(
            dsn, app_of(lambda job: door.wait(job.msg_id) if "wait" in job.payload else None, concurrency=1, lease=4)
        ) as worker,
    ):
        fast_ones(engine)
        engine.rows(
            "insert into pgmq.q_QUEUE (vt, message) select now(), case g when 1 then '{\"wait\": 1}' else '{}'"
            " end::jsonb from generate_series(1, 20) g"
        )
        door.reached()
        held = held_beside(engine, door)
        wait_until(lambda: {fields["msg_id"] for _, fields in released} >= held, 20)
        # Not claimed ahead again while the thread is busy, so that another process can have them.
        turns(worker, "work")
        assert all(engine.state(one).visible and engine.trouble(one)[:2] == (0, 0) for one in held)
        door.open()
        wait_until(lambda: engine.count("queue") == 0, 20)
    assert engine.value("select count(*) from queue_worker.failures") == 0


def fast_ones(engine: Engine) -> None:
    """Teach the loop that messages are quick, so that it claims ahead."""
    engine.rows("insert into pgmq.q_QUEUE (vt, message) select now(), '{}' from generate_series(1, 200)")
    wait_until(lambda: engine.count("archive") >= 200, 20)


def held_beside(engine: Engine, door: Door) -> set[int]:
    rows = engine.rows("select msg_id from pgmq.q_QUEUE where vt > now() and msg_id <> all (%s)", door.inside)
    assert rows, "the loop had claimed nothing ahead"
    return {row[0] for row in rows}


# ------------------------------------------------------------------------------------------------ the threads alone


def executor_of(handler: Any, concurrency: int = 1) -> Executor:
    options = load_settings({"database_url": "postgresql://localhost/x"}).options_for("work", {})
    context = DatabaseContext(None, "archive", lambda message: 60.0, lambda job: False)  # type: ignore[arg-type]
    return ThreadExecutor(
        Processor("work", handler),
        RetryPolicy.from_options(options),
        context,
        concurrency=concurrency,
        settle_mark=1,
        wake=lambda: None,
    )


def run_of(msg_id: int, deadline: float = float("inf")) -> Run:
    return Run(Message("work", Receipt(msg_id, 1, b"t"), b"{}"), 0.0, deadline)


@pytest.fixture
def door() -> Door:
    return Door()


def test_a_message_whose_lease_has_ended_is_not_started(door: Door) -> None:
    executor = executor_of(lambda job: door.wait())
    late, lost = run_of(1, deadline=0.0), run_of(2)
    lost.lost = True
    executor.submit([late, lost])
    wait_until(lambda: len(executor.finished) == 2)
    assert [run.outcome for run in executor.finished] == [Release(), Release()]
    assert door.arrived == 0
    executor.close()


def test_a_message_that_was_given_back_is_not_started_and_a_started_one_is_not_given_back(door: Door) -> None:
    executor = executor_of(lambda job: door.wait(job.msg_id))
    runs = [run_of(1), run_of(2), run_of(3)]
    executor.submit(runs)
    door.reached()
    executor.give_back(runs)
    assert [run.outcome for run in runs] == [None, Release(), Release()]
    door.open()
    wait_until(lambda: len(executor.finished) == 3)
    assert door.arrived == 1
    executor.close()


def test_a_message_given_back_between_the_inbox_and_its_start_is_not_started(door: Door) -> None:
    """The thread has taken it out of the inbox and waits for the lock; the release comes first."""
    executor = executor_of(lambda job: door.wait())
    door.open()
    executor.submit([run_of(1)])
    wait_until(lambda: len(executor.finished) == 1)
    run = run_of(2)
    with executor._lock:
        executor._inbox.put(run)
        wait_until(lambda: executor.backlog == 0)
        run.outcome = Release()
    executor.close()
    assert executor.join(10)
    assert not run.started
    assert door.arrived == 1


def test_only_what_has_not_begun_is_overdue(door: Door) -> None:
    class Loop:
        queue = "work"
        executor = executor_of(lambda job: None)
        options = type("Options", (), {"lease_seconds": 60})()
        held: dict[int, Run] = {n: run_of(n) for n in (1, 2, 3)}  # noqa: RUF012

    Loop.held[1].started = 1.0
    Loop.held[2].outcome = Release()
    assert overdue(Loop, 29.0) == []  # type: ignore[arg-type]
    assert overdue(Loop, 31.0) == [Loop.held[3]]  # type: ignore[arg-type]


def test_the_threads_of_an_executor_end_with_it() -> None:
    before = set(threading.enumerate())
    executor = executor_of(lambda job: None, concurrency=3)
    executor.submit([run_of(n) for n in range(3)])
    wait_until(lambda: len(executor.finished) == 3)
    executor.close()
    assert executor.join(10)
    assert set(threading.enumerate()) == before
