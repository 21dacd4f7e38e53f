"""A worker as the examples run it: `queue-worker start` as a process of its own, beside the other commands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from examples.stage import until
from queue_worker.cli import run

ROOT = Path(__file__).resolve().parents[1]

_OURS = ("QUEUE_WORKER_", "SMTP_", "DB_", "SUPABASE_", "STRIPE_", "RESEND_")


@contextmanager
def folder(name: str) -> Iterator[Path]:
    """Give the folder for what an example writes: its first argument or `EXAMPLE_FOLDER`, which is kept.

    Without either it is a temporary one called after `name`, gone afterwards. While the block runs it is the working
    directory, so that no `.env` of a developer counts.
    """
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("EXAMPLE_FOLDER")
    made = Path(given).resolve() if given else Path(tempfile.mkdtemp(prefix=f"{name}-"))
    made.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(made)
    # Ended like Ctrl+C, so that nothing is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield made
    finally:
        os.chdir(before)
        if not given:
            shutil.rmtree(made, ignore_errors=True)


def settings(values: Mapping[str, str]) -> None:
    """Make `values` the only settings of this process and of those that it starts, beside where the database is."""
    for name in [name for name in os.environ if name.startswith(_OURS)]:
        del os.environ[name]
    os.environ.update(values)


def command(*arguments: str) -> int:
    """Run one command of `queue-worker` in this process, with its line above what it prints; returns its exit code."""
    print(f"$ queue-worker {shlex.join(arguments)}", flush=True)
    return run(arguments)


class Worker:
    """A worker that runs; `log` is the file that it writes."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self.log = log

    def says(self, pattern: str) -> str:
        """Wait until a line of its log matches; returns the first group, or all that matched."""

        def found() -> re.Match[str] | None:
            match = re.search(pattern, self.log.read_text())
            if match is None and self._process.poll() is not None:
                sys.exit(f"the worker ended:\n{self.log.read_text()}")
            return match

        match: re.Match[str] = until(found, f"{pattern!r} in {self.log}")
        return match[1] if match.groups() else match[0]

    def stop(self) -> int:
        """Stop it as a process manager does; returns its exit code."""
        self._process.terminate()
        return self._process.wait(30)


@contextmanager
def worker(*arguments: str, log: Path) -> Iterator[Worker]:
    """Run `queue-worker start` with these arguments while the block runs; it ends with this process in any case."""
    print(f"$ queue-worker start {shlex.join(arguments)}", flush=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with log.open("wb") as output:
        process = subprocess.Popen(
            # This module is `queue-worker start`, and ends when what it reads ends: also where this process is killed.
            [sys.executable, "-m", "queue_worker.demo_worker", *arguments],
            stdin=subprocess.PIPE, stdout=output, stderr=output, env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )  # fmt: skip
    running = Worker(process, log)
    try:
        running.says(r" ready version=\S+")
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
