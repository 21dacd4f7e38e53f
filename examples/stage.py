"""What the examples share: a database of their own, a clock that can be put forward, and checks that are printed."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from queue_worker import embedded, migrate


@contextmanager
def database() -> Iterator[str]:
    """Give the URL of a database with the schema: that of `EXAMPLE_DATABASE_URL`, else an embedded one of its own.

    The embedded one lives in a temporary folder and is gone afterwards. While the block runs, `DATABASE_URL` is set to
    it, and what a developer's shell says of another one does not count.
    """
    given = os.environ.get("EXAMPLE_DATABASE_URL")
    if given:
        migrate.up(given)
        with _database_url(given):
            yield given
        return
    folder = Path(tempfile.mkdtemp(prefix="example-"))
    try:
        with embedded.ensure(folder / "postgres") as server:
            migrate.up(server.url)
            with _database_url(server.url):
                yield server.url
    finally:
        embedded.stop(folder / "postgres", delete=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _database_url(url: str) -> Iterator[None]:
    before = os.environ.get("DATABASE_URL")
    os.environ["DATABASE_URL"] = url
    try:
        yield
    finally:
        if before is None:
            del os.environ["DATABASE_URL"]
        else:
            os.environ["DATABASE_URL"] = before


def advance(connection: psycopg.Connection[Any], queue: str, seconds: float) -> int:
    """Put the clock of a queue forward: what is due within `seconds` is due now. Returns how many messages wait on.

    It moves the due times of messages that nobody runs, so that a retry in 960 seconds need not be waited for.
    """
    # One statement, because a worker may claim what is due before a second one could count.
    move = sql.SQL(
        "with moved as (update {} set vt = vt - make_interval(secs => %s) where msg_id in"
        " (select msg_id from queue_worker.messages(%s, 1000000, state => 'delayed')) returning vt)"
        " select count(*) from moved where vt > clock_timestamp()"
    ).format(sql.Identifier("pgmq", f"q_{queue}"))
    (count,) = connection.execute(move, [seconds, queue]).fetchone() or (0,)
    return int(count)


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Wait until `condition` is true, and return its value; ends the program with one line after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            sys.exit(f"gave up after {seconds:g} s: {what}")
        time.sleep(0.02)
    return value


class Checks:
    """Prints what was looked at, and remembers whether all of it held."""

    def __init__(self) -> None:
        self.failed = 0
        self.held = 0

    def __call__(self, text: str, holds: object) -> None:
        """Print one line for `text`, and count whether it holds."""
        self.held += bool(holds)
        self.failed += not holds
        print("  ok  " if holds else "  NOT ", text, flush=True)

    def end(self) -> None:
        """Print the sum; ends the program with exit code 1 if anything did not hold."""
        print(f"{self.held} of {self.held + self.failed} checks hold", flush=True)
        if self.failed:
            sys.exit(1)
