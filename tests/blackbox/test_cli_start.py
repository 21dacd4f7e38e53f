"""`queue-worker start` as a process: signals, exit codes, what it prints, what a stranger can see of it."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import psycopg

from tests.blackbox.program import COMMAND, Program
from tests.helpers import child_processes, wait_until

JOBS = """
import time
from pathlib import Path
from queue_worker import App, Job

app = App(builtins=False)

@app.processor("readme-queue", concurrency=2, retry=(5, 60))
def work(job: Job) -> None:
    Path("started").touch()
    while not Path("go").exists():
        time.sleep(0.01)
    Path("finished").touch()
"""


def states(db: psycopg.Connection[tuple], queue: str = "readme-queue") -> dict[str, int]:
    row = db.execute(
        "select waiting, delayed, running, dead from queue_worker.queues where queue = %s", [queue]
    ).fetchone()
    assert row is not None
    return dict(zip(("waiting", "delayed", "running", "dead"), row, strict=True))


def archived(db: psycopg.Connection[tuple]) -> int:
    [(count,)] = db.execute('select count(*) from pgmq."a_readme-queue"')
    return int(count)


def busy(program: Program) -> None:
    """Write the app, and send one message that it will hold on to until there is a file `go`."""
    Path("jobs.py").write_text(JOBS)
    program.ok("create", "readme-queue")
    program.ok("send", "readme-queue", '{"n": 1}')


def test_sigterm_lets_the_running_handler_finish_and_ends_with_0(
    program: Program, db: psycopg.Connection[tuple]
) -> None:
    busy(program)
    with program.running("--app", "jobs:app") as worker:
        wait_until(lambda: Path("started").exists(), 20, lambda: worker.log)
        worker.signal(signal.SIGTERM)
        wait_until(lambda: " stopping" in worker.log, 10, lambda: worker.log)
        program.ok("send", "readme-queue", '{"n": 2}')
        Path("go").touch()
        assert worker.end() == 0
    assert Path("finished").exists()
    assert archived(db) == 1
    # What came after the signal is for the next worker.
    assert states(db) == {"waiting": 1, "delayed": 0, "running": 0, "dead": 0}
    assert db.execute("select count(*) from queue_worker.workers").fetchone() == (0,)
    assert program("health").code == 1


def test_a_second_signal_more_than_a_second_later_ends_it_now_and_charges_nothing(
    program: Program, db: psycopg.Connection[tuple]
) -> None:
    busy(program)
    with program.running("--app", "jobs:app") as worker:
        wait_until(lambda: Path("started").exists(), 20, lambda: worker.log)
        worker.signal(signal.SIGINT)
        wait_until(lambda: " stopping" in worker.log, 10, lambda: worker.log)
        # Repeated until it counts: signals within a second of the first one are the same wish.
        wait_until(lambda: worker.signal(signal.SIGINT) or worker.process.poll() is not None, 15)
        assert worker.end() == 130
    assert not Path("finished").exists()
    assert archived(db) == 0
    assert db.execute("select count(*) from queue_worker.failures").fetchone() == (0,)
    assert states(db)["running"] == 0


def test_a_handler_that_never_ends_cannot_keep_the_process_up(program: Program, db: psycopg.Connection[tuple]) -> None:
    busy(program)
    settings = {"QUEUE_WORKER_GRACE_SECONDS": "0.5", "QUEUE_WORKER_STOP_TIMEOUT": "10"}
    with program.running("--app", "jobs:app", **settings) as worker:
        wait_until(lambda: Path("started").exists(), 20, lambda: worker.log)
        worker.signal()
        assert worker.end() == 70
    assert states(db) == {"waiting": 0, "delayed": 1, "running": 0, "dead": 0}


def test_start_announces_what_it_does_and_health_and_status_see_it(
    program: Program, db: psycopg.Connection[tuple]
) -> None:
    Path("jobs.py").write_text(JOBS)
    with program.running("--app", "jobs:app", "-c", "3", QUEUE_WORKER_BATCH_SIZE="7") as worker:
        worker.ready()
        assert "version=0.1.0 transport=postgres" in worker.log
        line = (
            "looks every 5 s, claims 7 at a time, runs 3 at once, retries after 5, 60, 60, 60, 60 s queue=readme-queue"
        )
        wait_until(lambda: line in worker.log, 10, lambda: worker.log)
        wait_until(lambda: program("health").code == 0, 20)
        wait_until(lambda: program.ok("status", "--json").json["workers"], 20)
        [seen] = program.ok("status", "--json").json["workers"]
        assert (seen["pid"], seen["queues"], seen["slots"]) == (worker.process.pid, ["readme-queue"], 3)
        Path("go").touch()
        # A message that arrives in an idle worker is done without further ado.
        db.execute("select pgmq.send('readme-queue', '{}')")
        wait_until(lambda: archived(db) == 1, 20, lambda: worker.log)
        worker.signal()
        assert worker.end() == 0


def test_json_lines_for_machines(program: Program) -> None:
    Path("jobs.py").write_text(JOBS)
    done = program.ok("start", "--app", "jobs:app", "--burst", QUEUE_WORKER_LOG_FORMAT="json")
    lines = done.err.splitlines()
    assert lines
    assert all(line.startswith('{"time": ') for line in lines)


def test_start_makes_the_schema_when_asked(bare: Program, empty_dsn: str) -> None:
    Path("jobs.py").write_text(JOBS)
    assert bare("start", "--app", "jobs:app", "--burst", DATABASE_URL=empty_dsn).code == 78
    bare.ok("start", "--app", "jobs:app", "--burst", "--migrate", DATABASE_URL=empty_dsn)
    [queue] = bare.ok("status", "--json", DATABASE_URL=empty_dsn).json["queues"]
    assert queue["queue"] == "readme-queue"


def test_the_built_in_processors_run_without_an_app(program: Program, db: psycopg.Connection[tuple]) -> None:
    program.ok("create", "email")
    program.ok("send", "email", '{"to": "ann@example.com", "subject": "Привет", "text": "a"}')
    program.ok("start", "--burst", "-q", "email")
    [mail] = Path(".queue-worker/outbox").glob("*.eml")
    assert b"ann@example.com" in mail.read_bytes()
    with program.running("-q", "email,reports") as worker:
        worker.ready()
        waited = program.ok("email", "test", "bob@example.com", "--wait")
        assert waited.out.splitlines() == ["2", "sent"]
        worker.signal()
        assert worker.end() == 0
    assert len(list(Path(".queue-worker/outbox").glob("*.eml"))) == 2
    queues = {row[0] for row in db.execute("select queue from queue_worker.queues").fetchall()}
    assert queues == {"email", "reports"}


def test_no_secret_in_arguments_and_log(program: Program, dsn: str) -> None:
    secret = "pw-of-the-database-77"
    with program.running("-q", "email", DATABASE_URL=f"{dsn}&password={secret}") as worker:
        worker.ready()
        for pid in [worker.process.pid, *child_processes()]:
            assert secret not in Path(f"/proc/{pid}/cmdline").read_text()
        worker.signal()
        assert worker.end() == 0
        assert secret not in worker.log


def test_an_own_thread_of_the_app_does_not_keep_the_process_up(program: Program, empty_dsn: str) -> None:
    Path("jobs.py").write_text(JOBS + "\nimport threading\nthreading.Thread(target=threading.Event().wait).start()\n")
    program.ok("start", "--app", "jobs:app", "--burst")
    assert program("start", "--app", "jobs:app", DATABASE_URL=empty_dsn).code == 78


def test_what_a_handler_prints_is_seen_at_once(program: Program, db: psycopg.Connection[tuple]) -> None:
    Path("jobs.py").write_text(JOBS.replace('Path("started").touch()', 'print("printed")'))
    program.ok("create", "readme-queue")
    db.execute("select pgmq.send('readme-queue', '{}')")
    with program.running("--app", "jobs:app") as worker:
        wait_until(lambda: "printed\n" in worker.log, 20, lambda: worker.log)
        Path("go").touch()
        worker.signal()
        assert worker.end() == 0


def test_commands_share_the_embedded_database(bare: Program) -> None:
    here = {"QUEUE_WORKER_EMBEDDED": "1"}
    bare.ok("migrate", **here)
    bare.ok("create", "readme-queue", "--embedded")
    assert bare.ok("--embedded", "send", "readme-queue", "{}").out == "1\n"
    [queue] = bare.ok("status", "--json", **here).json["queues"]
    assert (queue["queue"], queue["waiting"]) == ("readme-queue", 1)
    done = bare("status", "--embedded", DATABASE_URL="postgresql://127.0.0.1:1/x")
    assert done.code == 78
    assert "QUEUE_WORKER_EMBEDDED and DATABASE_URL" in done.line


def test_watch_refreshes_until_ctrl_c(program: Program) -> None:
    program.ok("create", "post")
    process = subprocess.Popen(
        [*COMMAND, "status", "--watch", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=program.environment(),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    assert '"queue": "post"' in process.stdout.readline()
    program.ok("pause", "post", "--reason", "why")
    assert '"pause_reason": "why"' in process.stdout.readline() + process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    assert process.stderr.read() == ""
    process.stdout.close()
    process.stderr.close()
