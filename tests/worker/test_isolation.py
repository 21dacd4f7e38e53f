"""Handlers in child processes: a time limit kills them, their own death is a failure, and they die with the worker."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from queue_worker import App, Job, LeaseLost, Reject, Retry, Unavailable, events
from queue_worker.child_protocol import ORIGIN_KINDS
from queue_worker.config import load_settings
from queue_worker.config_options import resolve
from queue_worker.errors import CallRefused, ConfigError, InvalidPayload, TransportUnavailable
from queue_worker.handler_process import failure_of
from queue_worker.message import Message, Receipt
from queue_worker.retry import RetryPolicy
from queue_worker.service import Service
from tests.helpers import child_processes, running, wait_until
from tests.sql.engine import Engine
from tests.worker import isolated
from tests.worker.processes import NOTES, Zygote

pytestmark = pytest.mark.conformance(hosted=True)


def app_of(handler: Any = isolated.handle, **options: Any) -> App:
    app = App(builtins=False)
    settings = {"cycle": 0.1, "concurrency": 1, "retry": (600,), **options}
    app.processor("work", isolation="process", **settings)(handler)
    return app


@pytest.fixture
def noted(effects: Engine) -> Engine:
    """The queue, and tables that tell which process ran what."""
    effects.rows("drop table effects")
    effects.rows(NOTES.replace("effects (key text", "effects (key bigint"))
    return effects


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[IO[str]]:
    """A locked file: handlers wait for it."""
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def pids(engine: Engine) -> list[int]:
    return [row[0] for row in engine.rows("select process from starts order by at")]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


def failures(engine: Engine) -> list[Any]:
    return [tuple(row) for row in engine.rows("select msg_id, kind, error from queue_worker.failures order by 1")]


def test_one_child_serves_many_messages_and_is_not_the_worker(dsn: str, noted: Engine) -> None:
    for _ in range(5):
        noted.send({"do": "pid"})
    before = child_processes()
    with running(dsn, app_of()):
        wait_until(lambda: noted.count("archive") == 5, 30)
        (child,) = set(pids(noted))
        assert child in child_processes() - before
    assert child != os.getpid()
    wait_until(lambda: gone(child))


def test_a_time_limit_kills_the_child_and_what_it_started(dsn: str, noted: Engine, lock: IO[str]) -> None:
    stuck = noted.send({"do": "parented", "path": lock.name}, {"timeout_seconds": 1})
    with running(dsn, app_of(timeout=600)) as worker:
        wait_until(lambda: len(pids(noted)) == 2, 30)
        program, child = pids(noted)
        wait_until(lambda: gone(child) and gone(program))
        wait_until(lambda: failures(noted) == [(stuck, "timeout", "timeout: the handler ran longer than 1 s")])
        # Its slot is free again, with a new child.
        noted.send({"do": "pid"})
        wait_until(lambda: noted.count("archive") == 1, 30)
        (loop,) = worker.service.workers
        assert loop.executor.free == 1
    assert pids(noted)[2] != child


@pytest.mark.parametrize(
    ("deed", "text"),
    [
        ("exit", "ChildDied: the handler's process exited with code 9"),
        ("segv", "ChildDied: the handler's process was killed by SIGSEGV (signal 11)"),
        ("kill", "ChildDied: the handler's process was killed by SIGKILL (signal 9)"),
    ],
)
def test_a_child_that_dies_is_a_failed_attempt_and_no_suspect(dsn: str, noted: Engine, deed: str, text: str) -> None:
    msg_id = noted.send({"do": deed})
    with running(dsn, app_of()):
        wait_until(lambda: failures(noted), 30)
        noted.send({"do": "pid"})
        wait_until(lambda: noted.count("archive") == 1, 30)
    ((found, kind, error),) = failures(noted)
    assert (found, kind) == (msg_id, "failed")
    assert error.startswith(text)
    assert noted.trouble(msg_id)[:2] == (1, 0)


def test_exceptions_and_steering_cross_the_border(dsn: str, noted: Engine) -> None:
    deeds = ["value", "own", "memory", "sys.exit", "retry", "reject", "lease"]
    ids = {deed: noted.send({"do": deed}) for deed in deeds}
    invalid = noted.send({"do": 5})
    with running(dsn, app_of()):
        wait_until(lambda: noted.value("select count(*) from pgmq.q_work where read_ct = 0") == 0, 30)
        wait_until(lambda: len(failures(noted)) == 7)
        wait_until(lambda: noted.value("select count(*) from queue_worker_data.trouble where failures = 0") == 1)
    errors = {msg_id: error for msg_id, _, error in failures(noted)}
    first = errors[ids["value"]].splitlines()
    assert first[0] == "ValueError: bad value"
    assert first[-1].startswith("  at worker/isolated.py:")
    assert errors[ids["own"]].startswith("OwnError: one and two\n")
    assert errors[ids["memory"]].startswith("MemoryError")
    assert errors[ids["sys.exit"]].startswith("SystemExit: 3")
    assert errors[ids["retry"]] == "not yet"
    dead = noted.rows("select msg_id, reason, error from queue_worker.dead_letters order by 1")
    assert dead[0] == (ids["reject"], "rejected", "never")
    assert dead[1][:2] == (invalid, "invalid")
    due = noted.value("select ceil(extract(epoch from vt - now()) / 100)::int from pgmq.q_work where msg_id = %s", 5)
    assert due == 9


@pytest.mark.conformance(without="rest", hosted=True)
def test_rows_and_ack_commit_together_over_the_childs_own_connection(dsn: str, noted: Engine) -> None:
    one, two = noted.send({"do": "write"}), noted.send({"do": "write and raise"})
    with events.capture("message.late_error") as late, running(dsn, app_of()):
        wait_until(lambda: noted.count("archive") == 2, 30)
        wait_until(lambda: late)
    assert noted.rows("select key from effects order by key") == [(one,), (two,)]
    assert noted.value("select count(*) from pgmq.q_work") == 2
    assert failures(noted) == []


def test_what_a_job_says_about_itself_reaches_the_worker(dsn: str, noted: Engine, lock: IO[str]) -> None:
    msg_id = noted.send({"do": "remember", "path": lock.name})
    with events.capture("message.done") as done, running(dsn, app_of(timeout=5)) as worker:
        wait_until(
            lambda: noted.rows("select done, total, note from queue_worker.progress") == [(3, 4, "half way")], 30
        )
        (loop,) = worker.service.workers
        ((_, run),) = loop.executor.live()
        assert run.job.extra_seconds == 30
        fcntl.flock(lock, fcntl.LOCK_UN)
        wait_until(lambda: done)
    assert done[0][1]["note"] == {"order": 7, "where": "/x"}
    assert noted.places(msg_id) == ["archive"]


def test_async_handlers_and_output(dsn: str, noted: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    noted.send({"do": "say"})
    with running(dsn, app_of(isolated.handle_async)):
        wait_until(lambda: noted.count("archive") == 1, 30)
    assert "hello from" in capfd.readouterr().out


def test_what_still_runs_after_the_grace_is_killed_uncharged(dsn: str, noted: Engine, lock: IO[str]) -> None:
    msg_id = noted.send({"do": "wait", "path": lock.name})
    with running(dsn, app_of(), grace_seconds=0.2) as worker:
        wait_until(lambda: pids(noted), 30)
    assert worker.code == 70
    wait_until(lambda: gone(pids(noted)[0]))
    assert noted.trouble(msg_id)[:2] == (0, 0)


def test_children_die_with_a_worker_that_is_killed(
    dsn: str, noted: Engine, lock: IO[str], zygote: Zygote, tmp_path: Path
) -> None:
    noted.send({"do": "wait", "path": lock.name})
    process = zygote.start(dsn, tmp_path, options={"isolation": "process", "handler": "tests.worker.isolated:handle"})
    wait_until(lambda: pids(noted), 30, process.said)
    (child,) = pids(noted)
    assert child != process.pid
    process.signal(signal.SIGKILL)
    process.ended()
    wait_until(lambda: gone(child))


def test_signals_to_the_whole_tree_are_for_the_worker(dsn: str, noted: Engine, lock: IO[str]) -> None:
    msg_id = noted.send({"do": "wait", "path": lock.name})
    with running(dsn, app_of()):
        wait_until(lambda: pids(noted), 30)
        (child,) = pids(noted)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(child, number)
        fcntl.flock(lock, fcntl.LOCK_UN)
        wait_until(lambda: noted.count("archive") == 1)
    assert noted.places(msg_id) == ["archive"]
    assert failures(noted) == []


def test_a_handler_that_cannot_be_imported_is_refused_at_the_start(dsn: str) -> None:
    def inner(job: Job[dict[str, Any]]) -> None: ...

    settings = load_settings({"database_url": dsn})
    with pytest.raises(ConfigError, match=r"'work': isolation='process' needs .* not defined at the top of a module"):
        Service(settings, app_of(inner))
    other = isolated.bare
    other.__qualname__ = "handle"
    try:
        with pytest.raises(ConfigError, match=r"isolated\.handle is something else"):
            Service(settings, app_of(other))
    finally:
        other.__qualname__ = "bare"
    with pytest.raises(ConfigError, match="isolation must be 'thread' or 'process'"):
        App().processor("work", isolation="magic")(isolated.bare)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="do not go together"):
        App().processor("work", isolation="process", batch=True)(lambda jobs: None)


@pytest.mark.parametrize(
    "error",
    [
        Retry("later", delay=5),
        Unavailable("away", delay=7),
        Reject("never"),
        LeaseLost("gone"),
        InvalidPayload("n: missing"),
        TransportUnavailable("down"),
        CallRefused("no", "23505"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_steers_is_the_same_on_the_other_side(error: Exception) -> None:
    message = Message("work", Receipt(1, 1, b"t"), b"{}")
    crossed = pickle.loads(pickle.dumps(failure_of(error, RetryPolicy.from_options(resolve("work", ())), message)))
    found = crossed.exception()
    assert type(found) is type(error)
    assert (str(found), vars(found)) == (str(error), vars(error))


def test_other_exceptions_keep_the_names_of_their_classes() -> None:
    message = Message("work", Receipt(1, 1, b"t"), b"{}")
    policy = RetryPolicy.from_options(resolve("work", ()))
    found = failure_of(isolated.OwnError("one", "two"), policy, message).exception()
    assert type(found).__name__ == "OwnError"
    assert getattr(found, ORIGIN_KINDS)[:2] == ("tests.worker.isolated.OwnError", "builtins.Exception")
