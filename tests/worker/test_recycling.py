"""A worker that has done enough stops as after a signal and asks to be started again; nothing is lost or charged."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker import App, Job, events
from queue_worker.config import load_settings
from queue_worker.errors import ConfigError
from queue_worker.host import Host
from queue_worker.recycling import Recycling, resident_bytes
from queue_worker.service import Service
from queue_worker.supervisor import Signals
from tests.blackbox.program import Program
from tests.helpers import Running, wait_until
from tests.sql.engine import Engine
from tests.worker.kit import Door, app_of


def bounded(dsn: str, app: App, **bounds: Any) -> Running:
    """A worker in this process with bounds on its life."""
    signals = Signals()
    host = Host(signals=signals, recycling=Recycling(**bounds, wake=signals.arrived.set))
    settings = load_settings({"database_url": dsn, "state_dir": Path(".queue-worker")})
    return Running(Service(settings, app, host))


def ended(worker: Running) -> int | None:
    wait_until(lambda: worker.code is not None or worker.error is not None, 30)
    return worker.stop()


def test_after_max_jobs_it_stops_and_gives_the_rest_back_uncharged(dsn: str, engine: Engine) -> None:
    engine.fill(1000)
    with events.capture("worker.recycling") as said:
        worker = bounded(dsn, app_of(lambda job: None, concurrency=2, batch_size=5), max_jobs=20)
        assert ended(worker) == 75
    done = engine.count("archive")
    # A few claims more than the bound: those that were under way when it was reached.
    assert 20 <= done < 500
    assert [name for name, _ in said] == ["worker.recycling"]
    assert said[0][1]["reason"].endswith(" jobs")
    assert engine.value("select count(*) from pgmq.q_QUEUE where vt <= clock_timestamp()") == 1000 - done
    assert engine.value("select coalesce(sum(failures + lost), 0) from queue_worker_data.trouble") == 0


def test_failed_runs_are_jobs_too(dsn: str, engine: Engine) -> None:
    def fail(job: Job[dict[str, Any]]) -> None:
        raise ValueError("no")

    engine.fill(3)
    assert ended(bounded(dsn, app_of(fail), max_jobs=3)) == 75


def test_running_handlers_finish_before_it_is_recycled(dsn: str, engine: Engine) -> None:
    door = Door()
    engine.send({})
    worker = bounded(dsn, app_of(lambda job: door.wait()), max_age=1)
    with events.capture("worker.stopping") as stopping:
        door.reached()
        wait_until(lambda: stopping, 20)
        assert worker.code is None
        door.open()
        assert ended(worker) == 75
    assert engine.count("archive") == 1


def test_a_signal_while_it_is_being_recycled_is_a_first_one_and_means_no_new_start(dsn: str, engine: Engine) -> None:
    door = Door()
    engine.send({})
    worker = bounded(dsn, app_of(lambda job: door.wait()), max_age=1)
    with events.capture("worker.stopping") as stopping:
        door.reached()
        wait_until(lambda: stopping, 20)
        worker.service.stop()
        # Two turns of the wait for running handlers: a second signal would have ended it.
        end = time.monotonic() + 0.5
        wait_until(lambda: time.monotonic() > end)
        assert worker.code is None
        door.open()
        assert worker.stop() == 0
    assert engine.count("archive") == 1


def test_memory_above_the_bound_ends_the_process(dsn: str, engine: Engine) -> None:
    hoard: list[bytes] = []
    worker = bounded(dsn, app_of(lambda job: hoard.append(b"x" * 80_000_000)), max_memory=resident_bytes() + 60_000_000)
    with events.capture("worker.recycling") as said:
        engine.send({})
        assert ended(worker) == 75
    hoard.clear()
    assert said[0][1]["reason"].endswith(" MB of memory")
    assert engine.count("archive") == 1


def test_a_memory_bound_below_what_the_start_takes_is_a_configuration_error(dsn: str, engine: Engine) -> None:
    worker = bounded(dsn, app_of(lambda job: None), max_memory=1_000_000)
    with pytest.raises(ConfigError, match=r"QUEUE_WORKER_MAX_MEMORY \(1 MB\) is less than this worker holds"):
        ended(worker)


def test_without_bounds_nothing_is_counted(dsn: str, engine: Engine) -> None:
    recycling = Recycling()
    recycling.begin()
    assert not any(events.wanted(f"message.{name}") for name in ("done", "retried", "dead"))
    assert recycling.due() is None


def test_a_service_inside_another_program_is_never_recycled(dsn: str, engine: Engine) -> None:
    engine.fill(5)
    settings = load_settings({"database_url": dsn, "max_jobs": 1, "state_dir": Path(".queue-worker")})
    worker = Running(Service(settings, app_of(lambda job: None)))
    wait_until(lambda: engine.count("archive") == 5, 20)
    assert worker.stop() == 0


# ------------------------------------------------------------------------------------------------ real processes

JOBS = """
from queue_worker import App, Job
app = App(builtins=False)

@app.processor("work", concurrency=4, cycle=0.1, lease=600)
def work(job: Job) -> None:
    with job.transaction() as tx:
        tx.execute("insert into effects values (%s)", [job.msg_id])
"""


def test_a_manager_that_restarts_75_loses_and_repeats_nothing(
    dsn: str, effects: Engine, db: psycopg.Connection[Any]
) -> None:
    Path("jobs.py").write_text(JOBS)
    effects.fill(60)
    program = Program(DATABASE_URL=dsn, QUEUE_WORKER_APP="jobs:app")
    codes = []
    while effects.count("archive") < 60:
        with program.running("--max-jobs", "16") as worker:
            wait_until(lambda: worker.process.poll() is not None or effects.count("archive") == 60, 60)
            worker.signal(signal.SIGTERM)
            codes.append(worker.end())
    # The last one had too little left, or reached its bound with the last message.
    assert codes[:-1] == [75] * (len(codes) - 1)
    assert codes[-1] in (0, 75)
    assert len(codes) >= 3
    assert db.execute("select count(*), count(distinct key) from effects").fetchone() == (60, 60)
    assert effects.value("select count(*) from queue_worker.failures") == 0
    assert effects.value("select count(*) from pgmq.q_QUEUE") == 0


@pytest.mark.parametrize(
    ("option", "text", "line"),
    [
        ("--max-memory", "lots", "--max-memory must be a size such as 512MB, 1.5G or a number of bytes"),
        ("--max-age", "soon", "--max-age must be a length of time such as 90, 90s, 15m, 1h30m or 2 days"),
        ("--max-age", "0", "--max-age must be a number of at least 1"),
    ],
)
def test_a_bound_that_is_none_is_one_line(option: str, text: str, line: str) -> None:
    done = Program(DATABASE_URL="postgresql://127.0.0.1:1/x")("start", option, text)
    assert (done.code, done.line) == (78, line)
