"""`start --processes` as a user has it: one parent, real children, real signals and kills."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from queue_worker.processes import Plan
from tests.blackbox.program import COMMAND, Program, Worker
from tests.helpers import wait_until

JOBS = """
import os
import time
from pathlib import Path
from queue_worker import App, Job

app = App(builtins=False)

@app.processor("work", concurrency=2, cycle=0.1, lease=600)
def work(job: Job) -> None:
    match job.payload.get("do"):
        case "wait":
            (Path("started") / str(job.msg_id)).write_text(str(os.getpid()))
            while not Path("go").exists():
                time.sleep(0.01)
        case "die":
            os._exit(9)
    with job.transaction() as tx:
        tx.execute("insert into effects values (%s, %s)", [job.msg_id, os.getpid()])
"""


@pytest.fixture
def app(db: psycopg.Connection[tuple]) -> None:
    """An app with one queue; its handler leaves one row in `effects` for each message."""
    Path("jobs.py").write_text(JOBS)
    Path("started").mkdir()
    db.execute("create table effects (msg_id bigint, pid int)")
    db.execute("select queue_worker.create_queue('work')")


def send(db: psycopg.Connection[tuple], count: int = 1, **payload: object) -> None:
    db.execute(
        "insert into pgmq.q_work (vt, message) select now(), %s from generate_series(1, %s)",
        [json.dumps(payload), count],
    )


def pids(db: psycopg.Connection[tuple]) -> set[int]:
    """The processes that have told the database of themselves."""
    return {row[0] for row in db.execute("select pid from queue_worker.workers").fetchall()}


def children(worker: Worker) -> set[int]:
    path = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children")
    return {int(pid) for pid in path.read_text().split()}


def living(found: set[int]) -> set[int]:
    alive = set()
    for pid in found:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                alive.add(pid)
    return alive


def all_ready(worker: Worker, times: int = 1) -> None:
    wait_until(
        lambda: worker.log.count("all processes are ready") == times or worker.process.poll() is not None,
        60,
        lambda: worker.log,
    )
    assert worker.process.poll() is None, worker.log


def started(count: int, worker: Worker) -> set[int]:
    """Wait for handlers that wait; returns the processes they run in."""
    # A file is there before it is written.
    wait_until(lambda: sum(1 for one in Path("started").iterdir() if one.read_text()) == count, 30, lambda: worker.log)
    return {int(path.read_text()) for path in Path("started").iterdir()}


def idle(db: psycopg.Connection[tuple]) -> bool:
    return db.execute("select count(*) from pgmq.q_work where vt > clock_timestamp()").fetchone() == (0,)


ARGUMENTS = ("--app", "jobs:app", "--processes", "2")


@pytest.mark.usefixtures("app")
def test_processes_share_the_work_and_one_signal_stops_all(program: Program, db: psycopg.Connection[tuple]) -> None:
    with program.running(*ARGUMENTS) as worker:
        all_ready(worker)
        assert len(children(worker)) == 2
        send(db, 4, do="wait")
        assert started(4, worker) == children(worker)
        wait_until(lambda: pids(db) == children(worker), 20)
        health = program.ok("health")
        assert health.out == "ok: 2 worker processes\n"
        for number in (1, 2):
            assert f"process={number} version=" in worker.log
        # The parent holds neither an app nor a database.
        memory = Path(f"/proc/{worker.process.pid}/statm").read_text().split()[1]
        assert int(memory) * os.sysconf("SC_PAGE_SIZE") < 30_000_000
        worker.signal(signal.SIGTERM)
        wait_until(lambda: worker.log.count(" stopping: running") == 2, 20, lambda: worker.log)
        Path("go").touch()
        assert worker.end() == 0
    assert db.execute("select count(*) from effects").fetchone() == (4,)
    assert idle(db)
    assert pids(db) == set()
    assert program("health").code == 1


@pytest.mark.usefixtures("app")
def test_a_signal_that_reaches_parent_and_children_again_and_again_is_one_wish(
    program: Program, db: psycopg.Connection[tuple]
) -> None:
    """A terminal and a process manager signal the whole tree, and a slow machine passes it on late."""
    with program.running(*ARGUMENTS) as worker:
        all_ready(worker)
        send(db, 4, do="wait")
        found = started(4, worker)
        worker.signal(signal.SIGINT)
        wait_until(lambda: worker.log.count(" stopping: running") == 2, 20, lambda: worker.log)
        # More than the second later in which a repetition counts once for a process that stands alone.
        asked = db.execute("select clock_timestamp() + interval '1.5 s'").fetchone()
        assert asked is not None
        while db.execute("select clock_timestamp() < %s", [asked[0]]).fetchone() == (True,):
            for pid in found:
                os.kill(pid, signal.SIGINT)
        assert living(found) == found
        Path("go").touch()
        assert worker.end() == 0
    assert db.execute("select count(*) from effects").fetchone() == (4,)


ON_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.usefixtures("app")
def test_ctrl_c_at_a_terminal_lets_running_handlers_finish(program: Program, db: psycopg.Connection[tuple]) -> None:
    ours, theirs = pty.openpty()
    with Path("worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", ON_A_TERMINAL, *COMMAND, "start", *ARGUMENTS],
            stdin=theirs, stdout=log, stderr=log, env=program.environment(),
        )  # fmt: skip
    os.close(theirs)
    worker = Worker(process)
    try:
        all_ready(worker)
        send(db, 4, do="wait")
        assert started(4, worker) == children(worker)
        # The terminal's signal goes to the group in the foreground, where the parent is alone.
        assert not [pid for pid in children(worker) if os.getpgid(pid) == os.getpgid(process.pid)]
        os.write(ours, b"\x03")
        wait_until(lambda: worker.log.count(" stopping: running") == 2, 20, lambda: worker.log)
        assert len(children(worker)) == 2
        Path("go").touch()
        assert worker.end() == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert db.execute("select count(*) from effects").fetchone() == (4,)


@pytest.mark.usefixtures("app")
def test_a_stop_while_the_app_is_being_imported_is_heeded_at_once(program: Program) -> None:
    Path("jobs.py").write_text("import time\nfrom pathlib import Path\nPath('importing').touch()\ntime.sleep(600)\n")
    with program.running(*ARGUMENTS) as worker:
        wait_until(lambda: Path("importing").exists(), 30, lambda: worker.log)
        worker.signal(signal.SIGTERM)
        assert worker.end(10) == 0


@pytest.mark.usefixtures("app")
def test_a_child_that_stands_still_is_killed_and_replaced(program: Program, dsn: str) -> None:
    command = [*COMMAND, "start", "--app", "jobs:app"]
    plan = Plan(command, 1, 25.0, 30.0, str(Path(".queue-worker").absolute()), False, False, 10, silent_seconds=12.0)
    with Path("worker.log").open("wb") as log:
        process = subprocess.Popen(plan.arguments(), stdout=log, stderr=log, env=program.environment())
    worker = Worker(process)
    try:
        all_ready(worker)
        [still] = children(worker)
        os.kill(still, signal.SIGSTOP)
        wait_until(lambda: worker.log.count(" ready process=1") == 2, 60, lambda: worker.log)
        assert "killed process=1" in worker.log
        assert not living({still})
        worker.signal()
        assert worker.end() == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("app")
def test_a_second_signal_later_ends_all_now_and_charges_nobody(program: Program, db: psycopg.Connection[tuple]) -> None:
    with program.running(*ARGUMENTS) as worker:
        all_ready(worker)
        send(db, 4, do="wait")
        found = started(4, worker)
        worker.signal(signal.SIGTERM)
        wait_until(lambda: worker.log.count(" stopping: running") == 2, 20, lambda: worker.log)
        wait_until(lambda: worker.signal(signal.SIGTERM) or worker.process.poll() is not None, 20)
        assert worker.end() == 143
    assert not living(found)
    assert db.execute("select count(*) from effects").fetchone() == (0,)
    assert db.execute("select count(*) from queue_worker.failures").fetchone() == (0,)


@pytest.mark.usefixtures("app")
def test_the_children_of_a_killed_parent_give_back_and_end(program: Program, db: psycopg.Connection[tuple]) -> None:
    with program.running(*ARGUMENTS, QUEUE_WORKER_GRACE_SECONDS="1") as worker:
        all_ready(worker)
        send(db, 4, do="wait")
        found = started(4, worker)
        worker.signal(signal.SIGKILL)
        assert worker.end() == -signal.SIGKILL
        wait_until(lambda: not living(found), 20, lambda: worker.log)
    # Given back for five seconds, instead of held for the lease of ten minutes.
    assert db.execute("select count(*) from pgmq.q_work where vt < clock_timestamp() + interval '6 s'").fetchone() == (
        4,
    )
    assert pids(db) == set()


@pytest.mark.usefixtures("app")
def test_a_killed_child_is_started_again_and_health_says_so_meanwhile(
    program: Program, db: psycopg.Connection[tuple]
) -> None:
    with program.running(*ARGUMENTS) as worker:
        all_ready(worker)
        first = children(worker)
        victim = min(first)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(children(worker) - {victim}) == 2, 20, lambda: worker.log)
        assert 'how="killed by SIGKILL" delay=0.5' in worker.log
        assert first - {victim} < children(worker)
        send(db, 20)
        wait_until(lambda: db.execute("select count(*) from effects").fetchone() == (20,), 20)
        worker.signal()
        assert worker.end() == 0


@pytest.mark.usefixtures("app")
def test_a_child_that_keeps_crashing_waits_longer_each_time_and_health_fails(
    program: Program, db: psycopg.Connection[tuple]
) -> None:
    Path("jobs.py").write_text("import os\nfrom pathlib import Path\nif Path('broken').exists(): os._exit(9)\n" + JOBS)
    with program.running(*ARGUMENTS) as worker:
        all_ready(worker)
        Path("broken").touch()
        os.kill(min(children(worker)), signal.SIGKILL)
        wait_until(lambda: 'how="exit code 9" delay=2' in worker.log, 30, lambda: worker.log)
        assert 'how="exit code 9" delay=1.0' in worker.log
        wait_until(lambda: program("health").code == 1, 30)
        Path("broken").unlink()
        wait_until(lambda: program("health").code == 0, 30)
        worker.signal()
        assert worker.end() == 0


@pytest.mark.usefixtures("app")
def test_recycled_processes_handle_each_message_once(program: Program, db: psycopg.Connection[tuple]) -> None:
    send(db, 120)
    with program.running(*ARGUMENTS, "--max-jobs", "15") as worker:
        wait_until(lambda: db.execute("select count(*) from effects").fetchone() == (120,), 90, lambda: worker.log)
        wait_until(lambda: worker.log.count("starting a process again") >= 3, 30, lambda: worker.log)
        worker.signal()
        assert worker.end() == 0
    assert db.execute("select count(distinct msg_id), count(*) from effects").fetchone() == (120, 120)
    assert db.execute("select count(distinct pid) >= 4 from effects").fetchone() == (True,)
    assert db.execute("select count(*) from pgmq.a_work").fetchone() == (120,)
    assert db.execute("select count(*) from queue_worker.failures").fetchone() == (0,)
    assert "code=75" in worker.log
    assert "recycling: to be started again" in worker.log


@pytest.mark.usefixtures("app")
def test_a_configuration_error_is_said_once_and_is_exit_78(program: Program) -> None:
    done = program("start", "--app", "jobs:app", "--processes", "3", "-q", "nobody")
    assert done.code == 78
    assert done.err.count("no processor for queue 'nobody'") == 1
    # Refused before any process is started.
    assert program("start", "--processes", "3", "--app", "jobs:app", DATABASE_URL="nonsense").code == 78


@pytest.mark.usefixtures("app")
def test_a_configuration_that_breaks_later_ends_all_with_78(program: Program, db: psycopg.Connection[tuple]) -> None:
    with program.running(*ARGUMENTS) as worker:
        all_ready(worker)
        Path("jobs.py").write_text("app = 1\n")
        os.kill(min(children(worker)), signal.SIGTERM)
        assert worker.end() == 78
    assert "is a int, not a queue_worker.App" in worker.log
    assert pids(db) == set()


@pytest.mark.usefixtures("app")
def test_a_grace_that_is_not_enough_is_exit_70(program: Program, db: psycopg.Connection[tuple]) -> None:
    with program.running(*ARGUMENTS, QUEUE_WORKER_GRACE_SECONDS="0.5") as worker:
        all_ready(worker)
        send(db, 1, do="wait")
        started(1, worker)
        worker.signal()
        assert worker.end() == 70


@pytest.mark.usefixtures("app")
def test_a_burst_ends_when_all_processes_have_nothing_left(program: Program, db: psycopg.Connection[tuple]) -> None:
    send(db, 50)
    done = program.ok("start", *ARGUMENTS, "--burst")
    assert "ready" in done.err
    assert db.execute("select count(distinct msg_id), count(*) from effects").fetchone() == (50, 50)


@pytest.mark.usefixtures("app")
def test_sigusr1_replaces_one_process_after_the_other(program: Program) -> None:
    with program.running(*ARGUMENTS) as worker:
        all_ready(worker)
        before = children(worker)
        worker.signal(signal.SIGUSR1)
        wait_until(lambda: worker.log.count("starting a process again") == 2, 30, lambda: worker.log)
        wait_until(lambda: worker.log.count(" ready ") == 4, 30, lambda: worker.log)
        assert len(children(worker)) == 2
        assert not children(worker) & before
        worker.signal()
        assert worker.end() == 0


class Listener:
    """The socket of a service manager."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("notify.sock")
        self.socket.setblocking(False)
        self.said: list[str] = []

    def heard(self, word: str) -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.said.append(self.socket.recv(4096).decode())
        return any(word in text.split("\n") for text in self.said)


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("processes", ["1", "2"])
def test_systemd_and_pm2_are_told(program: Program, processes: str) -> None:
    listener = Listener()
    ours, theirs = os.pipe()
    os.set_inheritable(theirs, True)
    variables = {
        "NOTIFY_SOCKET": str(Path("notify.sock").absolute()),
        "WATCHDOG_USEC": "60000000",
        "NODE_CHANNEL_FD": str(theirs),
        "NODE_APP_INSTANCE": "0",
    }
    # Popen closes what it is not told to keep; only the parent of all may speak.
    with (
        program.running("--app", "jobs:app", "--processes", processes, pass_fds=(theirs,), **variables) as worker,
        listener.socket,
    ):
        os.close(theirs)
        wait_until(lambda: listener.heard("READY=1"), 60, lambda: worker.log)
        assert worker.log.count(" ready ") >= int(processes)
        assert os.read(ours, 100) == b'"ready"\n'
        wait_until(lambda: listener.heard("WATCHDOG=1"), 30, lambda: worker.log)
        assert sum("READY=1" in text for text in listener.said) == 1
        worker.signal()
        wait_until(lambda: listener.heard("STOPPING=1"), 30, lambda: worker.log)
        assert worker.end() == 0
    assert os.read(ours, 100) == b""
    os.close(ours)
    assert sum("STOPPING=1" in text for text in listener.said) == 1
