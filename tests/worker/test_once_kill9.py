"""kill -9 between the reservation of an outside call and its record: nobody knows whether the call took place."""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import psycopg
import pytest

from tests.helpers import wait_until
from tests.sql.engine import Engine
from tests.worker.processes import NOTES, Zygote

OPTIONS = {"lease": 600, "max_attempts": 1}


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[TextIO]:
    """Held: calls of the outside world do not return until it is released."""
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield held


def calls(engine: Engine) -> list[str]:
    return [row[0] for row in engine.rows("select key from starts where key like 'call %%'")]


def kill_in_the_call(dsn: str, engine: Engine, zygote: Zygote, tmp_path: Path, unknown: str) -> None:
    """Start a worker, kill it while its call is under way, and let the lease end."""
    engine.send({"do": "once", "unknown": unknown, "lock": str(tmp_path / "lock")})
    worker = zygote.start(dsn, tmp_path, options=OPTIONS)
    wait_until(lambda: calls(engine), 30, worker.said)
    assert engine.rows("select key, state from queue_worker_data.once") == [("k", "reserved")]
    worker.signal(signal.SIGKILL)
    worker.ended()
    engine.age()


def test_by_default_a_person_gets_the_message_and_nothing_is_called_again(
    dsn: str, engine: Engine, db: psycopg.Connection[Any], zygote: Zygote, tmp_path: Path, lock: TextIO
) -> None:
    db.execute(NOTES)
    kill_in_the_call(dsn, engine, zygote, tmp_path, "raise")
    worker = zygote.start(dsn, tmp_path, options=OPTIONS)
    wait_until(lambda: engine.places(1) == ["dead"], 30, worker.said)
    (dead,) = engine.rows("select reason, error from queue_worker_data.dead_letters")
    assert dead.reason == "rejected"
    assert dead.error.startswith("unknown_outcome: nobody knows whether the call 'k' took place")
    assert engine.rows("select key, state from queue_worker_data.once") == [("k", "unknown")]
    assert calls(engine) == ["call k"]
    # The person looks it up, records it, and redrives: the run goes on behind the call.
    engine.rows("select queue_worker.once_finish('k', 'done', '\"ch_1\"')")
    engine.rows("select queue_worker.redrive('QUEUE')")
    wait_until(lambda: engine.count("archive") == 1, 30, worker.said)
    assert calls(engine) == ["call k"]


def test_with_retry_the_next_run_calls_again_under_the_same_key(
    dsn: str, engine: Engine, db: psycopg.Connection[Any], zygote: Zygote, tmp_path: Path, lock: TextIO
) -> None:
    db.execute(NOTES)
    kill_in_the_call(dsn, engine, zygote, tmp_path, "retry")
    fcntl.flock(lock, fcntl.LOCK_UN)
    worker = zygote.start(dsn, tmp_path, options=OPTIONS)
    wait_until(lambda: engine.places(1) == ["archive"], 30, worker.said)
    assert calls(engine) == ["call k"] * 2
    assert engine.rows("select state, value, attempts from queue_worker_data.once") == [("done", "called", 2)]
