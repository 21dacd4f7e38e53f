"""`queue-worker demo`: all three queues at work on an embedded Postgres, with a real worker and a real mail server.

Nothing is simulated but the outside: the sandbox payment provider moves no money, and the mail server keeps the mails.
Every figure of the summary is read back from the database, the file system or that server.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from queue_worker import demo_data, embedded, migrate
from queue_worker.config import Settings
from queue_worker.config_sources import variables
from queue_worker.demo_results import Results, collect, progress_of
from queue_worker.demo_smtp import CaptureServer
from queue_worker.errors import QueueWorkerError, UsageError
from queue_worker.schema_name import USUAL, use
from queue_worker.transport.postgres import connect

_LIMIT = 60.0
"""Seconds after which the demo gives up waiting and says what is missing."""

_POLL = 0.05
_STOP_SECONDS = 15.0
_LOCK = "demo.lock"
_OWN = ("reports", "mails", "outbox", "run", "worker.log", "demo.env")


class Screen(AbstractContextManager[Any], Protocol):
    """Where the demo shows itself; progress goes on while it is entered."""

    def note(self, text: str) -> None:
        """Show one line."""

    def progress(self, done: int, total: int, text: str) -> None:
        """Show how far the messages are."""

    def show(self, results: Results) -> None:
        """Show the summary."""

    def keep(self, server: embedded.EmbeddedServer) -> None:
        """Say how to reach the database that stays up."""


Reach = Callable[[embedded.EmbeddedServer], AbstractContextManager[Mapping[str, str]]]
"""Gives the settings by which a worker reaches the demo's database, while it is entered."""


@contextlib.contextmanager
def _embedded(_: embedded.EmbeddedServer) -> Iterator[Mapping[str, str]]:
    yield {"QUEUE_WORKER_EMBEDDED": "true"}


def run(folder: Path, screen: Screen, *, keep: bool = False, reach: Reach = _embedded) -> int:
    """Run the demo in `folder`, which is emptied first; returns 0 if everything went as it should, else 1.

    `keep` leaves the database up until Ctrl+C. `reach`: how its worker gets to the database. Raises UsageError for a
    folder with other people's files or with another demo in it, ConfigError where a package is missing.
    """
    begin = time.monotonic()
    folder = folder.resolve()
    with _claimed(folder), contextlib.ExitStack() as stack:
        with screen:
            smtp = stack.enter_context(CaptureServer(folder / "mails"))
            server = stack.enter_context(embedded.ensure(folder))
            screen.note("Postgres is up")
            results = _play(folder, server, smtp, screen, reach)
        results.seconds = time.monotonic() - begin
        screen.show(results)
        if keep:
            screen.keep(server)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
    return 0 if results.ok else 1


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold the folder for this demo alone, and empty it of what an earlier one left."""
    folder.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    lock = folder / _LOCK
    # Without this, `--dir ~` would delete a folder called reports there.
    if not lock.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} holds files that are not the demo's: choose an empty folder with --dir")
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another demo runs in {folder}: end it, or choose another folder with --dir") from None
        embedded.stop(folder, delete=True)
        for name in _OWN:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        yield


def _play(folder: Path, server: embedded.EmbeddedServer, smtp: CaptureServer, screen: Screen, reach: Reach) -> Results:
    """Set everything up, let the worker work, stop it, and read back what happened."""
    # Its database is its own, whatever the environment says of another one.
    use(USUAL)
    migrate.up(server.url)
    with connect(server.url, pooler=False) as connection, reach(server) as database:
        for queue in demo_data.QUEUES:
            connection.execute("select queue_worker.create_queue(%s)", [queue])
        for file in ("payments.sql", "reports.sql"):
            connection.execute((migrate.sql_dir() / "demo" / file).read_bytes())
        screen.note("Schema, three queues and the demo's tables are there")
        env_file = folder / "demo.env"
        settings = {**database, **demo_data.settings(folder, smtp.port)}
        env_file.write_text("".join(f"{name}={_quoted(value)}\n" for name, value in settings.items()))
        with _worker(env_file, folder / "worker.log") as worker:
            screen.note(f"A worker runs: {demo_data.MAX_ATTEMPTS} attempts, retries after {demo_data.RETRY} s")
            formats = demo_data.formats()
            _send(connection, env_file)
            screen.note("Sent: rows by a trigger, mails by SQL and by the command line, and junk by pgmq.send")
            _watch(connection, smtp, worker, screen, formats)
            code = _stop(worker)
        screen.note(f"The worker was stopped by SIGTERM and ended with exit code {code}")
        return collect(connection, smtp, folder, code, formats, settings)


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _environment() -> dict[str, str]:
    """The environment for child processes, without any setting of the user's own worker."""
    names = {name for choices in variables(Settings).values() for name in choices}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.upper() not in names and not name.upper().startswith("QUEUE_WORKER_")
    }
    here = str(Path(__file__).resolve().parents[1])
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [here, kept.get("PYTHONPATH", "")]))
    return kept


@contextlib.contextmanager
def _worker(env_file: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process while the block runs; it ends with this process, whatever ends that."""
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "queue_worker.demo_worker", "--env-file", str(env_file)],
            stdin=subprocess.PIPE, stdout=output, stderr=output, cwd=env_file.parent, env=_environment(),
            start_new_session=True,  # Ctrl+C is for the demo, which stops its worker itself
        )  # fmt: skip
    try:
        yield worker
    finally:
        if worker.poll() is None:
            worker.kill()
        worker.wait()
        assert worker.stdin is not None  # noqa: S101 - a pipe was asked for
        worker.stdin.close()


def _stop(worker: subprocess.Popen[bytes]) -> int | None:
    """Stop the worker as a process manager does; returns its exit code, None when it did not end in time."""
    worker.terminate()
    try:
        return worker.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _send(connection: Any, env_file: Path) -> None:
    """Enqueue everything but the report: rows, and mails in four ways."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into public.payments (amount_minor, currency, account, description) values (%s, %s, %s, %s)",
            demo_data.PAYMENTS,
        )
    connection.execute("select queue_worker.send('email', %s::jsonb)", [_json(demo_data.WELCOME)])
    connection.execute("select queue_worker.send_batch('email', %s::jsonb)", [_json(demo_data.BATCH)])
    connection.execute("select pgmq.send('email', %s::jsonb)", [_json(demo_data.JUNK)])
    sent = subprocess.run(
        [sys.executable, "-m", "queue_worker", "send", "email", "-", "--env-file", str(env_file)],
        input=_json(demo_data.BY_COMMAND), capture_output=True, text=True, cwd=env_file.parent, env=_environment(),
        check=False,
    )  # fmt: skip
    if sent.returncode != 0:
        raise QueueWorkerError(f"`queue-worker send` ended with {sent.returncode}: {sent.stderr.strip()}")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=dict)


def _watch(
    connection: Any, smtp: CaptureServer, worker: subprocess.Popen[bytes], screen: Screen, formats: tuple[str, ...]
) -> None:
    """Wait until all is done; order the report as soon as every payment but the failing one has its result."""
    end = time.monotonic() + _LIMIT
    ordered = False
    while time.monotonic() < end and worker.poll() is None:
        now = progress_of(connection)
        screen.progress(now.settled, demo_data.MESSAGES, f"{now.settled} of {demo_data.MESSAGES} messages are done")
        if not ordered and now.pending == 1:
            ordered = True
            connection.execute(
                "insert into public.report_orders (report, title, formats, recipient, subject)"
                " values ('payments', %s, %s, %s, %s)",
                [demo_data.REPORT_TITLE, list(formats), demo_data.REPORT_TO, demo_data.REPORT_TITLE],
            )
            screen.note("A row in report_orders has ordered a report over the payments")
        if ordered and now.live == 0 and now.settled >= demo_data.MESSAGES:
            return
        threading.Event().wait(_POLL)
    screen.note("Not everything was done: see worker.log")
