"""The shipped ecosystem.config.js under the real PM2."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.helpers import wait_until

pytestmark = pytest.mark.full

ROOT = Path(__file__).parent.parent
PM2 = ROOT / ".make" / "npm" / "node_modules" / ".bin" / "pm2"

APP = """
from queue_worker import App, Job
app = App(builtins=False)

@app.processor("slow", cycle=0.1)
def slow(job: Job) -> None:
    import time
    time.sleep(job.payload.get("seconds", 0))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder as a user has it: the config, a venv with the console script, an app."""
    folder = tmp_path / "project"
    (folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "ecosystem.config.js", folder)
    script = folder / ".venv" / "bin" / "queue-worker"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from queue_worker.cli import main\nmain()\n"
    )
    script.chmod(0o755)
    (folder / "jobs.py").write_text(APP)
    return folder


@pytest.fixture
def pm2(project: Path, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Call PM2 with a home of its own."""
    assert PM2.exists(), "PM2 is missing: run the tests by `make test-all`, which installs it"
    environment = {
        **os.environ,
        "PM2_HOME": str(tmp_path / "pm2"),
        "PM2_DISABLE_VERSION_CHECK": "true",
        "NO_COLOR": "1",
    }

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [PM2, *arguments], cwd=project, env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    try:
        yield call
    finally:
        call("kill")


def status(pm2: Callable[..., str]) -> dict[str, Any]:
    (app,) = json.loads(pm2("jlist").strip().splitlines()[-1])
    return {"pid": app["pid"], "status": app["pm2_env"]["status"], "restarts": app["pm2_env"]["restart_time"]}


def test_start_stop_and_kill(project: Path, pm2: Callable[..., str], dsn: str, db: psycopg.Connection[Any]) -> None:
    (project / ".env").write_text(f"DATABASE_URL={dsn}\nQUEUE_WORKER_APP=jobs:app\n")
    (project / ".env").chmod(0o600)
    pm2("start", "ecosystem.config.js")
    wait_until(lambda: db.execute("select 1 from queue_worker.workers").fetchone(), 30)

    # kill -9: PM2 starts it again, and it works.
    first = status(pm2)["pid"]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: status(pm2)["status"] == "online" and status(pm2)["pid"] not in (0, first), 30)
    db.execute("select queue_worker.send('slow', '{}')")
    wait_until(lambda: db.execute("select count(*) from pgmq.a_slow").fetchone() == (1,), 30)

    # stop: the running handler ends within the grace, and nothing is left invisible.
    db.execute("select queue_worker.send('slow', '{\"seconds\": 3}')")
    wait_until(lambda: db.execute("select running from queue_worker.queues").fetchone() == (1,), 10)
    pm2("stop", "queue-worker")
    assert status(pm2)["status"] == "stopped"
    assert db.execute("select count(*) from pgmq.a_slow").fetchone() == (2,)
    assert db.execute("select count(*) from pgmq.q_slow where vt > now()").fetchone() == (0,)


def test_a_configuration_error_is_not_restarted(project: Path, pm2: Callable[..., str]) -> None:
    (project / ".env").write_text("")
    pm2("start", "ecosystem.config.js")
    wait_until(lambda: "no database is set" in pm2("logs", "--nostream", "--lines", "50"), 30)
    wait_until(lambda: status(pm2)["pid"] == 0, 10)
    assert status(pm2)["restarts"] == 0


def test_a_recycled_worker_is_started_again(
    project: Path, pm2: Callable[..., str], dsn: str, db: psycopg.Connection[Any]
) -> None:
    (project / ".env").write_text(f"DATABASE_URL={dsn}\nQUEUE_WORKER_APP=jobs:app\nQUEUE_WORKER_MAX_JOBS=2\n")
    (project / ".env").chmod(0o600)
    db.execute("select queue_worker.create_queue('slow')")
    db.execute("select pgmq.send('slow', '{}') from generate_series(1, 2)")
    pm2("start", "ecosystem.config.js")
    wait_until(lambda: db.execute("select count(*) from pgmq.a_slow").fetchone() == (2,), 30)
    wait_until(lambda: status(pm2)["restarts"] == 1 and status(pm2)["status"] == "online", 30)
    db.execute("select pgmq.send('slow', '{}')")
    wait_until(lambda: db.execute("select count(*) from pgmq.a_slow").fetchone() == (3,), 30)
    pm2("stop", "queue-worker")


def test_the_parent_of_several_processes_answers_wait_ready_and_stops_them(
    project: Path, pm2: Callable[..., str], dsn: str, db: psycopg.Connection[Any]
) -> None:
    """With the file that `init` writes; PM2 signals the parent and each of its children."""
    command = [project / ".venv" / "bin" / "queue-worker", "init", "pm2", "--print"]
    text = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout
    script = json.dumps(os.path.relpath(Path(sys.executable).parent / "queue-worker", project))
    assert script in text
    text = text.replace(script, '".venv/bin/queue-worker"')
    text = text.replace('exec_mode: "fork",', 'exec_mode: "fork", wait_ready: true, listen_timeout: 60000,')
    (project / "ecosystem.config.js").write_text(text)
    (project / ".env").write_text(f"DATABASE_URL={dsn}\nQUEUE_WORKER_APP=jobs:app\nQUEUE_WORKER_PROCESSES=2\n")
    (project / ".env").chmod(0o600)
    pm2("start", "ecosystem.config.js")
    # PM2 has waited until all of them were ready.
    assert "all processes are ready" in pm2("logs", "--nostream", "--lines", "50")
    db.execute("select queue_worker.send('slow', '{\"seconds\": 3}') from generate_series(1, 2)")
    wait_until(lambda: db.execute("select running from queue_worker.queues").fetchone() == (2,), 20)
    pm2("stop", "queue-worker")
    assert status(pm2)["status"] == "stopped"
    assert db.execute("select count(*) from pgmq.a_slow").fetchone() == (2,)
    assert db.execute("select count(*) from queue_worker.workers").fetchone() == (0,)
    assert db.execute("select count(*) from queue_worker.failures").fetchone() == (0,)
