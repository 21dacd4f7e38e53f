"""Behind a transaction pooler: it is noticed, two server connections are enough, and no session keeps anything."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

import queue_worker
from queue_worker import Job, Queue, events
from queue_worker.transport.pooler import detect
from tests.blackbox.program import Program
from tests.helpers import running, wait_until
from tests.pooler import Pooler, pooler
from tests.sql.engine import Engine
from tests.worker.kit import Door, app_of

pytestmark = pytest.mark.full


@pytest.fixture
def front(dsn: str) -> Iterator[Pooler]:
    with pooler(dsn, size=2) as made:
        yield made


def test_a_pooler_is_told_by_what_it_does(dsn: str, front: Pooler) -> None:
    assert detect(front.url)
    assert not detect(dsn)
    with pooler(dsn, mode="session", size=8) as one:
        assert not detect(one.url)


def test_the_port_of_supabase_is_enough_and_nobody_at_home_is_no_pooler() -> None:
    assert detect("postgresql://postgres@pooler.invalid:6543/postgres")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert not detect(f"postgresql://postgres@127.0.0.1:{port}/postgres")


def left_behind(front: Pooler, sessions: int = 2) -> list[Any]:
    """What the sessions behind the pooler keep: prepared statements, channels, settings, locks, temporary tables."""
    found = []
    with (
        psycopg.connect(front.url, prepare_threshold=None) as one,
        psycopg.connect(front.url, prepare_threshold=None) as two,
    ):
        pids = set()
        # Both in a transaction, so each has a session of its own.
        for connection in (one, two)[:sessions]:
            pids.add(connection.execute("select pg_backend_pid()").fetchone())
            found += connection.execute("select name from pg_prepared_statements").fetchall()
            found += connection.execute("select pg_listening_channels()").fetchall()
            found += connection.execute(
                "select name, setting from pg_settings where source = 'session' and name not in"
                " ('application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings',"
                "  'transaction_isolation', 'transaction_read_only', 'transaction_deferrable', 'IntervalStyle')"
            ).fetchall()
            found += connection.execute(
                "select locktype from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'"
            ).fetchall()
            found += connection.execute("select relname from pg_class where relpersistence = 't'").fetchall()
        assert len(pids) == sessions
    return found


def test_a_worker_does_all_its_work_over_two_server_connections_and_leaves_nothing_in_them(
    front: Pooler, engine: Engine
) -> None:
    engine.rows("create table effects (n bigint not null)")

    def handle(job: Job[dict[str, Any]]) -> None:
        if job.attempt == 1 and job.msg_id % 5 == 0:
            raise ValueError("once")
        with job.transaction() as transaction:
            transaction.execute("insert into effects values (%s)", [job.msg_id])

    app = app_of(handle, retry=(0,), concurrency=6)
    app.schedule("every 1s", queue="work", name="tick", payload={})
    engine.fill(60)
    with events.capture("worker.ready") as ready, running(front.url, app):
        wait_until(lambda: engine.value("select count(*) from effects") >= 62, 40)
        wait_until(lambda: engine.rows("select 1 from queue_worker.workers"), 20)
    assert ready[0][1]["transport"] == "postgres (transaction pooler)"
    assert engine.value("select count(*) = count(distinct n) from effects")
    assert left_behind(front) == []


def test_a_running_message_is_cancelled_and_a_producer_needs_no_setting(
    front: Pooler, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", front.url)
    door = Door()
    msg_id = Queue("work").send({"n": 1})
    for _ in range(12):
        # More often than a statement needs to be prepared.
        Queue("work").send({"n": 2}, delay=600)
    with running(front.url, app_of(lambda job: door.wait())):
        door.reached()
        assert engine.value("select queue_worker.cancel('work', %s)", msg_id)
        door.open()
        wait_until(lambda: engine.places(msg_id) != ["queue"])
    queue_worker.close()
    assert left_behind(front) == []


def test_every_command_works_through_it(front: Pooler, empty_dsn: str, engine: Engine) -> None:
    with pooler(empty_dsn, size=2) as fresh:
        program = Program(DATABASE_URL=fresh.url)
        program.ok("migrate")
        assert program.ok("migrate").out.endswith("which is current\n")
        program.ok("migrate", "--check")
        program.ok("create", "email")
        assert program.ok("send", "email", '{"to": "ann@example.com"}').out == "1\n"
        program.ok("send", "email", "{}", "--delay", "10m")
        for words in (
            "pause email", "resume email", "limit email --rate 10/s", "status --json", "show email 1",
            "dead list email", "cancel email 2", "schedule add daily email --cron @daily", "schedule list",
            "schedule run daily", "audit email", "schedule remove daily", "doctor", "doctor --security",
            "purge email --yes", "drop email --yes",
        ):  # fmt: skip
            program.ok(*words.split())
        assert left_behind(fresh) == []
        program.ok("migrate", "--uninstall", "--yes")
        assert left_behind(fresh) == []
