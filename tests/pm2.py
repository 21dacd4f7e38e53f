"""The real PM2 with a home of its own, and a folder as a user of it has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MODULES = ROOT / ".make" / "npm" / "node_modules"

APP = """
from queue_worker import App, Job
app = App(builtins=False)

@app.processor("slow", cycle=0.1)
def slow(job: Job) -> None:
    import time
    time.sleep(job.payload.get("seconds", 0))

@app.processor("orders", cycle=0.1, batch_size=50, concurrency=4)
def order(job: Job) -> None:
    import os, time
    time.sleep(0.02)
    with job.transaction() as tx:
        tx.execute("insert into public.effects (number, pid) values (%s, %s)", [job.payload["number"], os.getpid()])
"""


class Pm2:
    """PM2 in `folder`, which holds ecosystem.config.js, a virtual environment, an app and `.env`."""

    def __init__(self, folder: Path, home: Path, dsn: str = "") -> None:
        self.folder = folder
        self.home = home
        self._environment = {
            **os.environ,
            "PM2_HOME": str(home),
            "PM2_DISABLE_VERSION_CHECK": "true",
            "NO_COLOR": "1",
        }
        script = folder / ".venv" / "bin" / "queue-worker"
        script.parent.mkdir(parents=True)
        script.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
            "from queue_worker.cli import main\nmain()\n"
        )
        script.chmod(0o755)
        shutil.copy(ROOT / "ecosystem.config.js", folder)
        (folder / "jobs.py").write_text(APP)
        self.settings(f"DATABASE_URL={dsn}" if dsn else "")

    def settings(self, *lines: str) -> None:
        """Write `.env`; the port of the API is any that is free."""
        path = self.folder / ".env"
        path.write_text("\n".join((*lines, "PORT=0", "QUEUE_WORKER_APP=jobs:app", "")))
        path.chmod(0o600)

    def change(self, old: str, new: str) -> None:
        """Change the worker's part of ecosystem.config.js."""
        path = self.folder / "ecosystem.config.js"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def __call__(self, *arguments: str, folder: Path | None = None) -> str:
        """Call PM2; returns what it prints."""
        done = subprocess.run(
            [MODULES / ".bin" / "pm2", *arguments],
            cwd=folder or self.folder, env=self._environment, capture_output=True, text=True, timeout=90,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def states(self, app: str = "queue-worker") -> list[dict[str, Any]]:
        """The instances of an app: pid, status, restarts."""
        listed = json.loads(self("jlist").strip().splitlines()[-1])
        return [
            {"pid": one["pid"], "status": one["pm2_env"]["status"], "restarts": one["pm2_env"]["restart_time"]}
            for one in listed
            if one["name"] == app
        ]

    def state(self, app: str = "queue-worker") -> dict[str, Any]:
        """The only instance of an app."""
        (one,) = self.states(app)
        return one

    def log(self, name: str = "worker") -> str:
        """What a log file of the folder holds."""
        path = self.folder / "logs" / f"{name}.log"
        return path.read_text() if path.exists() else ""


@contextmanager
def pm2_in(folder: Path, dsn: str) -> Iterator[Pm2]:
    """Give PM2 in `folder`/project; its daemon and everything that it started are gone afterwards."""
    assert (MODULES / ".bin" / "pm2").exists(), "PM2 is missing: run the tests by `make test-all`, which installs it"
    pm2 = Pm2(folder / "project", folder / "pm2", dsn)
    try:
        yield pm2
    finally:
        pm2("kill")
