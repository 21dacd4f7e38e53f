"""Programs that an example starts beside itself: servers on a free port, workers, callers."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORKER = ("-m", "queue_worker", "start", "--app")
UVICORN = ("-m", "uvicorn", "--port", "0", "--timeout-graceful-shutdown", "5", "--factory")
_NOT_OURS = ("QUEUE_WORKER_", "SMTP_", "DB_", "SUPABASE_", "PORT")
_URL = re.compile(r"http://127\.0\.0\.1:\d+")


class Program:
    """A Python program that runs: `pid`, and `log()`, what it has written so far."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._output = output

    def log(self) -> str:
        """Return what it has written."""
        return self._output.read_text()

    def wait_for(self, pattern: str | re.Pattern[str], seconds: float = 60.0) -> str:
        """Wait until it has written a text that fits, and return it (its first group, where it has one).

        Ends the example where that does not come.
        """
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.log())):
            if self._process.poll() is not None or time.monotonic() > end:
                sys.exit(f"no {pattern} in the output of a program:\n{self.log()}")
            time.sleep(0.02)
        return found[1] if found.re.groups else found[0]

    def url(self) -> str:
        """Wait until it says where it serves, and return that."""
        self.wait_for(r"Uvicorn running|API and dashboard at")
        return self.wait_for(_URL)

    def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit code (negative: the signal that ended it)."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(30)

    def kill(self) -> None:
        """End it, however it is."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


def environment(**variables: str) -> dict[str, str]:
    """Return variables for a program: those of the shell without settings of other services, and `variables`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**kept, "PYTHONPATH": path, **variables}


@contextlib.contextmanager
def beside(*arguments: str, log: Path, variables: Mapping[str, str], folder: Path | None = None) -> Iterator[Program]:
    """Run `python arguments` while the block runs, with these variables alone; what it prints goes to `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE, stdout=output, stderr=output, cwd=folder, env=dict(variables),
            start_new_session=True,
        )  # fmt: skip
    program = Program(process, log)
    try:
        yield program
    finally:
        program.kill()


@contextlib.contextmanager
def running(*arguments: str, **variables: str) -> Iterator[Program]:
    """Run `python arguments` beside the block, in an empty folder, so that it reads no `.env` and leaves nothing."""
    with tempfile.TemporaryDirectory(prefix="example-") as place:
        folder = Path(place)
        with beside(
            *arguments, log=folder / "output.log", variables=environment(**variables), folder=folder
        ) as program:
            yield program


@contextlib.contextmanager
def worker(*arguments: str, log: Path) -> Iterator[Program]:
    """Run `queue-worker start` with this process's own variables and folder while the block runs.

    Its module is the command, and ends when what it reads ends: also where this process is killed.
    """
    variables = {**os.environ, "PYTHONPATH": environment()["PYTHONPATH"]}
    with beside("-m", "queue_worker.demo_worker", *arguments, log=log, variables=variables) as program:
        program.wait_for(r" ready version=\S+")
        yield program


def call(*arguments: str, **variables: str) -> tuple[int, str]:
    """Run `python arguments` to its end; returns the exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
        env=environment(**variables),
    )
    return done.returncode, done.stdout.strip()
