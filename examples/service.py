"""A worker as the examples run it: `queue-worker start` as a process of its own, beside the other commands."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from examples import serving
from examples.serving import Program
from queue_worker.cli import run

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


@contextmanager
def worker(*arguments: str, log: Path) -> Iterator[Program]:
    """Run `queue-worker start` with these arguments while the block runs, with its line above."""
    print(f"$ queue-worker start {shlex.join(arguments)}", flush=True)
    with serving.worker(*arguments, log=log) as running:
        yield running
