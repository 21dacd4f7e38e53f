"""How a worker stops: what runs may finish, what waits goes back, and nothing stays invisible."""

from __future__ import annotations

import fcntl
import signal
import threading
import time
from pathlib import Path
from typing import IO

import psycopg
import pytest

from queue_worker import Job, events
from queue_worker.supervisor import Signals
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.stages import Stage
from tests.worker.kit import Door, app_of
from tests.worker.processes import NOTES, Process, Zygote

pytestmark = pytest.mark.conformance(hosted=True)


def invisible(engine: Engine) -> int:
    return int(engine.value("select count(*) from pgmq.q_QUEUE where vt > clock_timestamp()"))


def test_a_stop_lets_running_handlers_finish_and_gives_the_rest_back(dsn: str, engine: Engine) -> None:
    door, finished = Door(), []

    def handle(job):  # type: ignore[no-untyped-def]
        if "wait" in job.payload:
            door.wait(job.msg_id)
            finished.append(job.msg_id)

    with events.capture("worker.stopped") as stopped, running(dsn, app_of(handle, concurrency=2, lease=600)) as worker:
        # Quick ones first, so that the loop claims ahead of its threads.
        engine.rows("insert into pgmq.q_work (vt, message) select now(), '{}' from generate_series(1, 100)")
        wait_until(lambda: engine.count("archive") == 100)
        engine.rows("insert into pgmq.q_work (vt, message) select now(), '{\"wait\": 1}' from generate_series(1, 12)")
        door.reached(2)
        wait_until(lambda: invisible(engine) > 2)
        worker.service.stop()
        wait_until(lambda: invisible(engine) == 2)
        assert engine.value("select sum(failures + lost) from queue_worker_data.trouble") == 0
        door.open()
        assert worker.stop() == 0
    assert stopped == [("worker.stopped", {"code": 0})]
    assert len(finished) == 2
    assert engine.count("archive") == 102
    assert (engine.count("queue"), invisible(engine)) == (10, 0)
    assert engine.value("select count(*) from queue_worker.workers") == 0
    assert engine.value("select count(*) from queue_worker_data.sleepers") == 0


def test_a_handler_that_finishes_while_others_hold_given_back_messages_is_settled_at_once(
    dsn: str, engine: Engine
) -> None:
    """The loop may sleep for a minute; the result must not wait for it."""
    quick, slow = Door(), Door()
    doors = {"quick": quick, "slow": slow}
    app = app_of(lambda job: doors[job.payload["door"]].wait(), concurrency=2, cycle=60, batch_size=100)
    with running(dsn, app, notify=False) as worker:
        wait_until(lambda: worker.service.workers and worker.service.workers[0].empty_claims)
        (loop,) = worker.service.workers
        loop._appetite.learn(0.001, 1)  # as after many quick messages
        first = engine.send({"door": "quick"})
        engine.send({"door": "slow"})
        for _ in range(10):
            engine.send({"door": "slow"})
        loop.wake()
        quick.reached()
        slow.reached()
        quick.open()
        # Both threads are busy with slow ones now, and messages still wait for them.
        slow.reached(2)
        assert loop.executor.backlog > 0
        wait_until(lambda: engine.places(first) == ["archive"])
        worker.service.stop()
        wait_until(lambda: invisible(engine) == 2)
        slow.open()
        assert worker.stop() == 0


def test_a_grace_that_is_not_enough_gives_back_what_runs(dsn: str, engine: Engine) -> None:
    door = Door()
    msg_id = engine.send({})
    with running(dsn, app_of(lambda job: door.wait(), lease=600), grace_seconds=0.2) as worker:
        door.reached()
        before = engine.value("select clock_timestamp()")
        assert worker.stop() == 70
        after = engine.value("select clock_timestamp()")
        door.open()
    vt = engine.state(msg_id).vt
    assert before.timestamp() + 5 <= vt.timestamp() <= after.timestamp() + 5
    assert engine.trouble(msg_id) == (0, 0, 2)
    assert engine.count("archive") == 0


def test_a_claim_under_way_at_the_stop_starts_nothing(dsn: str, engine: Engine, db: psycopg.Connection[tuple]) -> None:
    door = Door()
    with running(dsn, app_of(lambda job: door.wait(), cycle=60)) as worker:
        wait_until(lambda: worker.service.workers and worker.service.workers[0].empty_claims)
        (loop,) = worker.service.workers
        # The claim hangs at the sleepers table, which it cleans after it has taken its messages.
        with psycopg.connect(dsn) as blocker:
            blocker.execute("lock table queue_worker_data.queues in access exclusive mode")
            msg_id = engine.send({})
            loop.wake()
            waiting = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
            wait_until(lambda: db.execute(waiting).fetchone())
            worker.service.stop()
            wait_until(lambda: loop._stopping)
        assert worker.stop() == 0
    assert door.arrived == 0
    assert engine.state(msg_id).visible
    assert engine.trouble(msg_id) in (None, (0, 0, 2))


def test_a_signal_handler_takes_no_lock_that_the_main_thread_may_hold() -> None:
    signals = Signals()
    with signals.installed(), signals.arrived._cond:
        signal.raise_signal(signal.SIGTERM)
    assert signals.count == 1
    assert signals.number == signal.SIGTERM


def test_a_signal_repeated_within_a_second_counts_once() -> None:
    signals = Signals()
    with signals.installed():
        for _ in range(5):
            signal.raise_signal(signal.SIGINT)
    assert signals.count == 1


def test_a_burst_ends_when_the_queues_are_empty_and_leaves_nothing_open(dsn: str, engine: Engine) -> None:
    engine.fill(30)
    with running(dsn, app_of(lambda job: None), burst=True) as worker:
        wait_until(lambda: worker.code is not None, 20)
    assert worker.code == 0
    assert engine.count("archive") == 30


def test_a_burst_does_what_its_handlers_send_to_other_queues(dsn: str, engine: Engine) -> None:
    """Also where the other queue has looked last before it was sent to, and is not woken."""
    looked = threading.Event()

    def first(job: Job) -> None:
        looked.wait(20)
        job.send("second", {})

    app = app_of(first, cycle=60)

    @app.processor("second", cycle=60)
    def second(job: Job) -> None:
        job.send("third", {})

    @app.processor("third", cycle=60)
    def third(job: Job) -> None: ...

    engine.fill(1)
    with running(dsn, app, burst=True, notify=False) as worker:
        wait_until(lambda: len(worker.service.workers) == 3)
        others = [one for one in worker.service.workers if one.queue != "work"]
        wait_until(lambda: all(one.idle for one in others))
        looked.set()
        wait_until(lambda: worker.code is not None, 20)
    assert engine.value("select count(*) from pgmq.a_third") == 1


def test_a_loop_that_dies_ends_the_process_as_a_crash(dsn: str, engine: Engine) -> None:
    with running(dsn, app_of(lambda job: None)) as worker:
        wait_until(lambda: worker.service.workers)

        def broken() -> float:
            raise RuntimeError("the loop is broken")

        worker.service.workers[0].cycle = broken  # type: ignore[method-assign]
        wait_until(lambda: worker.code is not None, 20)
    assert worker.code == 1


# ------------------------------------------------------------------------------------------------ real processes


def lock_of(folder: Path) -> IO[str]:
    """A locked file; handlers that wait for it go on when it is closed."""
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


class Waiting:
    """A process whose handlers wait until they are let go."""

    def __init__(self, zygote: Zygote, dsn: str, folder: Path, engine: Engine, **settings: float) -> None:
        self.engine = engine
        self._lock = lock_of(folder)
        engine.rows(NOTES)
        self.ids = [engine.send({"do": "wait", "lock": self._lock.name}) for _ in range(6)]
        self.process: Process = zygote.start(dsn, folder, options={"concurrency": 2, "lease": 600}, **settings)
        wait_until(lambda: engine.value("select count(*) from starts") == 2, 20, self.process.said)

    def let_go(self) -> None:
        self._lock.close()


def later(seconds: float) -> None:
    """Wait until the worker's rule for repeated signals allows the next one."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end)


def test_sigterm_finishes_what_runs_and_exits_clean(
    dsn: str, engine: Engine, zygote: Zygote, tmp_path: Path, stage: Stage
) -> None:
    waiting = Waiting(zygote, dsn, tmp_path, engine)
    waiting.process.signal(signal.SIGTERM)
    wait_until(lambda: waiting.process.events("worker.stopping"))
    waiting.let_go()
    assert waiting.process.ended() == 0
    assert (engine.count("archive"), engine.count("queue"), invisible(engine)) == (2, 4, 0)
    connections = engine.value(
        "select count(*) from pg_stat_activity where application_name = 'queue_worker' and datname = current_database()"
    )
    # A pooler keeps those that it has.
    assert connections == 0 or stage.transport == "pooler"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_gives_back_what_runs_and_exits_now(
    dsn: str, engine: Engine, zygote: Zygote, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    waiting = Waiting(zygote, dsn, tmp_path, engine)
    waiting.process.signal(number)
    wait_until(lambda: waiting.process.events("worker.stopping"))
    later(1.1)
    assert waiting.process.code is None
    waiting.process.signal(number)
    assert waiting.process.ended(10) == code
    assert engine.count("archive") == 0
    assert engine.value("select bool_and(vt < clock_timestamp() + interval '5 s') from pgmq.q_work")
    assert engine.value("select sum(failures + lost) from queue_worker_data.trouble") == 0


def test_a_third_signal_ends_a_process_that_cannot_even_give_back(
    dsn: str, engine: Engine, zygote: Zygote, tmp_path: Path
) -> None:
    waiting = Waiting(zygote, dsn, tmp_path, engine)
    with psycopg.connect(dsn) as blocker:
        blocker.execute("lock table queue_worker_data.trouble in access exclusive mode")
        waiting.process.signal(signal.SIGTERM)
        wait_until(lambda: waiting.process.events("worker.stopping"))
        for _ in range(2):
            later(1.1)
            waiting.process.signal(signal.SIGTERM)
        assert waiting.process.ended(10) == 143
    engine.age()
    assert len(engine.take(6, suspects=1)) >= 1


def test_a_grace_exceeded_by_a_process_is_exit_70(dsn: str, engine: Engine, zygote: Zygote, tmp_path: Path) -> None:
    waiting = Waiting(zygote, dsn, tmp_path, engine, grace_seconds=0.3)
    waiting.process.signal(signal.SIGTERM)
    assert waiting.process.ended(20) == 70
    assert engine.value("select bool_and(vt < clock_timestamp() + interval '5 s') from pgmq.q_work")


def test_all_threads_stuck_is_exit_75_of_the_process(dsn: str, engine: Engine, zygote: Zygote, tmp_path: Path) -> None:
    engine.rows(NOTES)
    with lock_of(tmp_path) as lock:
        engine.send({"do": "wait", "lock": lock.name})
        process = zygote.start(dsn, tmp_path, options={"concurrency": 1, "timeout": 0.5, "max_attempts": 1})
        assert process.ended(20) == 75
    assert engine.count("dead") == 1
