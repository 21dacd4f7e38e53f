"""A real worker on queues with lanes and limits, and what its breaker does."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

import pytest

from queue_worker import Job, Unavailable
from queue_worker.run import Run
from queue_worker.threads import ThreadExecutor
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.worker.kit import Door, app_of, hurry, turns

pytestmark = pytest.mark.conformance(hosted=True)


def state(engine: Engine, column: str) -> Any:
    return engine.value(f"select {column} from queue_worker_data.queues where queue = %s", engine.queue)


def pass_time(engine: Engine) -> None:
    """Let the pause be over; the loop looks again by itself."""
    engine.rows(
        "update queue_worker_data.queues set broken_until = clock_timestamp() - interval '1 ms'"
        " where broken_until is not null"
    )


# ---------------------------------------------------------------------------------------------------- breaker


class Provider:
    """What the handler calls; `down` says whether it answers."""

    def __init__(self, error: Exception) -> None:
        self.down = True
        self.calls = 0
        self._error = error

    def handle(self, job: Job[dict[str, Any]]) -> None:
        self.calls += 1
        if self.down:
            raise self._error


def test_a_provider_that_is_down_is_left_alone_but_for_probes_and_nobody_is_charged(engine: Engine, dsn: str) -> None:
    engine.fill(20)
    provider = Provider(Unavailable("503", delay=600))
    with running(dsn, app_of(provider.handle, concurrency=1, breaker_seconds=3600)) as worker:
        wait_until(lambda: state(engine, "broken_until"), 20)
        turns(worker, "work")
        assert provider.calls == 1
        assert state(engine, "broken_reason") == "503"
        pass_time(engine)
        wait_until(lambda: provider.calls == 2, 20)
        wait_until(lambda: state(engine, "broken_until > now() + interval '500 s'"), 20)
        turns(worker, "work")
        assert provider.calls == 2
        provider.down = False
        pass_time(engine)
        # Those that were tried come back a little later than the others.
        wait_until(lambda: hurry(engine) or engine.count("archive") == 20, 40)
    assert provider.calls == 22
    assert engine.rows("select * from queue_worker.failures") == []
    assert state(engine, "broken_at") is None
    actions = [row[0] for row in engine.rows("select action from queue_worker.audit order by audit_id")]
    assert actions == ["trip", "close_breaker"]


def test_messages_that_wait_for_a_thread_do_not_ask_a_provider_that_has_just_gone_down(
    engine: Engine, dsn: str
) -> None:
    engine.fill(400)
    calls: list[int] = []

    def handle(job: Job[dict[str, Any]]) -> None:
        calls.append(job.msg_id)
        if len(calls) > 250:  # by now a claim brings many at a time
            raise Unavailable("503", delay=600)

    with running(dsn, app_of(handle, concurrency=1, batch_size=100)) as worker:
        wait_until(lambda: state(engine, "broken_until"), 20)
        turns(worker, "work")
    assert len(calls) == 251


def test_failures_in_a_row_open_it_and_are_charged(engine: Engine, dsn: str) -> None:
    engine.fill(10)
    provider = Provider(ValueError("no"))
    options = {"concurrency": 1, "breaker_failures": 3, "breaker_seconds": 3600, "batch_size": 1}
    with running(dsn, app_of(provider.handle, **options)) as worker:
        wait_until(lambda: state(engine, "broken_until"), 20)
        turns(worker, "work")
    assert provider.calls == 3
    assert state(engine, "broken_reason") == "3 failures in a row, the last: ValueError: no"
    assert engine.value("select count(*) from queue_worker.failures") == 3


def test_a_success_in_between_starts_the_count_anew(engine: Engine, dsn: str) -> None:
    engine.fill(12)

    def handle(job: Job[dict[str, Any]]) -> None:
        if job.msg_id % 3:
            raise ValueError("no")

    with running(dsn, app_of(handle, concurrency=1, breaker_failures=3, batch_size=1)):
        wait_until(lambda: engine.value("select count(*) from queue_worker.failures") == 8, 20)
        wait_until(lambda: engine.count("archive") == 4, 20)
    assert state(engine, "broken_at") is None


def test_a_probe_that_fails_keeps_it_open(engine: Engine, dsn: str) -> None:
    engine.fill(5)
    engine.rows("select queue_worker.trip('work', 3600, 3600, 'down', 'w')")
    provider = Provider(ValueError("no"))
    with running(dsn, app_of(provider.handle, concurrency=3)) as worker:
        turns(worker, "work")
        assert provider.calls == 0
        pass_time(engine)
        wait_until(lambda: provider.calls == 1, 20)
        wait_until(lambda: state(engine, "broken_reason = 'the trial failed: ValueError: no'"), 20)
        turns(worker, "work")
    assert provider.calls == 1


# ---------------------------------------------------------------------------------------------------- limits


def test_a_worker_starts_no_more_than_the_rate_and_goes_on_when_it_is_lifted(engine: Engine, dsn: str) -> None:
    engine.fill(10)
    engine.rows("select queue_worker.set_rate_limit('work', 3, 3600)")
    with running(dsn, app_of(lambda job: None)) as worker:
        wait_until(lambda: engine.count("archive") == 3, 20)
        turns(worker, "work")
        assert engine.count("archive") == 3
        engine.rows("select queue_worker.set_rate_limit('work', null, null)")
        wait_until(lambda: engine.count("archive") == 10, 20)


def test_two_workers_together_run_no_more_than_the_fleet_may(engine: Engine, dsn: str) -> None:
    engine.fill(10)
    engine.rows("select queue_worker.set_concurrency('work', fleet => 3)")
    door = Door()

    def handle(job: Job[dict[str, Any]]) -> None:
        door.wait(job.msg_id)

    with running(dsn, app_of(handle)) as one, running(dsn, app_of(handle)) as two:
        door.reached(3)
        turns(one, "work")
        turns(two, "work")
        assert door.arrived == 3
        door.open()
        wait_until(lambda: engine.count("archive") == 10, 30)


# ---------------------------------------------------------------------------------------------------- lanes


def test_a_worker_keeps_the_order_of_each_group_and_runs_groups_beside_each_other(engine: Engine, dsn: str) -> None:
    engine.rows("select queue_worker.create_queue('work', ordered => true)")
    for number in range(60):
        engine.send({"group": number % 6, "n": number}, {"group_key": f"g{number % 6}"})
    seen: dict[int, list[int]] = defaultdict(list)
    busy: set[int] = set()
    wrong: list[int] = []
    lock = threading.Lock()

    def handle(job: Job[dict[str, Any]]) -> None:
        group = job.payload["group"]
        with lock:
            wrong.extend([group] if group in busy else [])
            busy.add(group)
            seen[group].append(job.payload["n"])
        with lock:
            busy.discard(group)

    with running(dsn, app_of(handle)), running(dsn, app_of(handle)):
        wait_until(lambda: engine.count("archive") == 60, 40)
    assert wrong == []
    assert all(order == sorted(order) for order in seen.values())


@pytest.mark.parametrize("batch_size", [1, 10])
def test_a_worker_runs_higher_priorities_first(engine: Engine, dsn: str, batch_size: int) -> None:
    for priority in (0, 10, 90, 50, 0, 90):
        engine.send({"priority": priority}, {"priority": priority})
    seen: list[int] = []
    handler = lambda job: seen.append(job.payload["priority"])  # noqa: E731
    with running(dsn, app_of(handler, concurrency=1, batch_size=batch_size)):
        wait_until(lambda: len(seen) == 6, 20)
    assert seen == [90, 90, 50, 10, 0, 0]


def test_an_expired_message_never_runs_and_says_why_it_is_dead(engine: Engine, dsn: str) -> None:
    late = engine.send(headers={"expires_at": "2020-01-01T00:00:00+00:00"})
    fresh = engine.send()
    ran: list[int] = []
    with running(dsn, app_of(lambda job: ran.append(job.msg_id))):
        wait_until(lambda: engine.count("archive") == 1 and engine.count("dead") == 1, 20)
    assert ran == [fresh]
    assert engine.rows("select msg_id, reason, error, attempts from queue_worker.dead_letters") == [
        (late, "expired", "not run before 2020-01-01T00:00:00+00:00", 0)
    ]


def test_what_expired_while_the_provider_was_down_is_not_the_trial(engine: Engine, dsn: str) -> None:
    for _ in range(3):
        engine.send(headers={"expires_at": "2020-01-01T00:00:00Z"})
    engine.rows("update pgmq.q_work set vt = now() - interval '1 h'")
    engine.fill(1)
    engine.rows("select queue_worker.trip('work', 60, 3600, 'down')")
    pass_time(engine)
    with running(dsn, app_of(lambda job: None)):
        wait_until(lambda: state(engine, "broken_at") is None, 20)
    assert (engine.count("archive"), engine.count("dead")) == (1, 3)


def test_the_trial_is_not_given_back_by_the_pause_that_it_is_to_end(
    engine: Engine, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late its thread begins, and however often the loop has heard of the pause by then."""
    begin, door = ThreadExecutor._begin, Door()

    def late(self: ThreadExecutor, run: Run, thread: int, now: float) -> bool:
        if run.message.probe:
            door.wait()
        return begin(self, run, thread, now)

    monkeypatch.setattr(ThreadExecutor, "_begin", late)
    engine.fill(1)
    engine.rows("select queue_worker.trip('work', 60, 3600, 'down')")
    pass_time(engine)
    with running(dsn, app_of(lambda job: None)) as worker:
        door.reached()
        turns(worker, "work")
        door.open()
        wait_until(lambda: state(engine, "broken_at") is None, 20)
    assert engine.value("select read_ct from pgmq.a_work") == 1


def test_a_processor_that_wants_order_makes_its_queue_ordered(engine: Engine, dsn: str) -> None:
    engine.send(headers={"group_key": "a"})
    assert not state(engine, "ordered")
    with running(dsn, app_of(lambda job: None, ordered=True)):
        wait_until(lambda: engine.count("archive") == 1, 20)
    assert state(engine, "ordered")
