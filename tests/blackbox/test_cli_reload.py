"""`start --reload` while somebody edits the app."""

from __future__ import annotations

import signal
from pathlib import Path

import psycopg
import pytest

from tests.blackbox.program import Program, Worker
from tests.helpers import child_processes, wait_until

JOBS = """
from queue_worker import App, Job
from helper import name

app = App(builtins=False)

@app.processor("work", cycle=0.1)
def work(job: Job) -> None:
    print("handled by", name)
"""


@pytest.fixture
def app(db: psycopg.Connection[tuple]) -> None:
    Path("jobs.py").write_text(JOBS)
    Path("helper.py").write_text("name = 'first'\n")
    db.execute("select queue_worker.create_queue('work')")


def shows(worker: Worker, text: str, times: int = 1) -> None:
    wait_until(lambda: worker.log.count(text) >= times or worker.process.poll() is not None, 60, lambda: worker.log)
    assert worker.process.poll() is None, worker.log


@pytest.mark.usefixtures("app")
def test_each_change_starts_the_worker_anew_and_an_error_waits_for_the_next(
    program: Program, db: psycopg.Connection[tuple]
) -> None:
    with program.running("--app", "jobs:app", "--reload") as worker:
        shows(worker, " ready version")
        db.execute("select pgmq.send('work', '{}')")
        shows(worker, "handled by first")

        Path("helper.py").write_text("name = 'second'\n")
        shows(worker, "changed, starting again file=helper.py")
        shows(worker, " ready version", 2)
        db.execute("select pgmq.send('work', '{}')")
        shows(worker, "handled by second")

        Path("helper.py").write_text("name = \n")
        shows(worker, "queue-worker: helper.py, line 1: invalid syntax\n")
        shows(worker, "the worker has ended, it starts again when a file changes code=78")
        assert "Traceback" not in worker.log

        Path("helper.py").write_text("name = 'third'\n")
        shows(worker, " ready version", 3)
        db.execute("select pgmq.send('work', '{}')")
        shows(worker, "handled by third")

        # What is no source does not matter.
        Path("notes.txt").write_text("nothing")
        worker.signal(signal.SIGINT)
        assert worker.end() == 0
    assert worker.log.count("changed, starting again") == 3
    assert not child_processes()
    assert db.execute("select count(*) from queue_worker.workers").fetchone() == (0,)


@pytest.mark.usefixtures("app")
def test_a_running_handler_does_not_hold_up_a_change(program: Program, db: psycopg.Connection[tuple]) -> None:
    Path("helper.py").write_text("import time\nprint('waits', flush=True)\nname = ''\n")
    Path("jobs.py").write_text(JOBS.replace("print(", "__import__('time').sleep(600) or print("))
    with program.running("--app", "jobs:app", "--reload") as worker:
        db.execute("select pgmq.send('work', '{}')")
        shows(worker, " started queue=work")
        Path("helper.py").write_text("name = 'second'\n")
        shows(worker, " ready version", 2)
        worker.signal(signal.SIGINT)
        assert worker.end() in (0, 70)
    assert db.execute("select count(*) from queue_worker.failures").fetchone() == (0,)


def test_it_needs_an_app_and_one_process() -> None:
    program = Program(DATABASE_URL="postgresql://127.0.0.1:1/x")
    done = program("start", "--reload")
    assert (done.code, done.line.split(":")[0]) == (2, "--reload watches the files of your app")
    done = program("start", "--reload", "--processes", "2", "--app", "jobs:app")
    assert (done.code, done.line) == (2, "--reload and --processes: give one of them")


@pytest.mark.usefixtures("app")
def test_it_dies_by_kill_9_and_takes_the_worker_with_it(program: Program, db: psycopg.Connection[tuple]) -> None:
    with program.running("--app", "jobs:app", "--reload") as worker:
        shows(worker, " ready version")
        wait_until(lambda: db.execute("select count(*) from queue_worker.workers").fetchone() == (1,), 20)
        worker.signal(signal.SIGKILL)
        assert worker.end() == -signal.SIGKILL
        wait_until(
            lambda: db.execute("select count(*) from queue_worker.workers").fetchone() == (0,), 30, lambda: worker.log
        )
    assert "stopped code=0" in worker.log
