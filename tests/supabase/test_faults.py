"""Over REST too: whatever goes away and comes back, nothing is lost, nothing is done twice, nobody is charged."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker import Job, events
from tests.helpers import running, wait_until
from tests.own_server import OwnServer
from tests.sql.engine import Engine
from tests.stages import Dsn
from tests.supabase.postgrest import prepare_roles
from tests.supabase.project import Project, project
from tests.worker.kit import app_of, hurry
from tests.worker.processes import NOTES

pytestmark = pytest.mark.full

TOTAL = 600


def prepare(connection: psycopg.Connection[Any]) -> Engine:
    """Make queue `work` and the tables that handlers write into, with `TOTAL` messages."""
    engine = Engine(connection)
    engine.rows("select queue_worker.create_queue('work')")
    for statement in NOTES.split(";\n\n"):
        engine.rows(statement)
    engine.fill(TOTAL)
    return engine


@pytest.fixture
def engine(db: psycopg.Connection[Any]) -> Engine:
    return prepare(db)


class Load:
    """A handler whose effect commits with the ack, and how many have ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.done = 0

    def handle(self, job: Job[dict[str, Any]]) -> None:
        job.finish("public.note_effect", key=str(job.msg_id))
        with self._lock:
            self.done += 1


def under_load(dsn: str, engine: Engine, fault: Callable[[int], None], times: int = 3) -> None:
    """Work `TOTAL` messages off; `fault` strikes `times` times on the way. Asserts that each took effect once."""
    load = Load()
    with running(dsn, app_of(load.handle, lease=10, batch_size=20, concurrency=8), call_timeout_seconds=3):
        for number in range(1, times + 1):
            wait_until(lambda number=number: load.done > number * TOTAL // (times + 2), 60)
            fault(number)
        wait_until(lambda: hurry(engine) or engine.count("queue") == 0, 60, lambda: str(engine.count("queue")))
    assert engine.count("archive") == TOTAL
    assert engine.rows("select count(*) as rows, count(distinct key) as keys from effects") == [(TOTAL, TOTAL)]
    assert engine.count("dead") == 0
    assert engine.rows("select msg_id, error from queue_worker.failures") == []


def test_postgrest_that_crashes_under_load(supabase: Project, over_rest: str, engine: Engine) -> None:
    def crash(number: int) -> None:
        supabase.postgrest.kill()
        supabase.postgrest.start()

    under_load(over_rest, engine, crash)


def test_replies_that_are_dropped_under_load(supabase: Project, over_rest: str, engine: Engine) -> None:
    supabase.gateway.drop_every(7)
    under_load(over_rest, engine, lambda number: None)
    assert supabase.gateway.dropped > 20


def test_a_gateway_that_answers_nonsense_under_load(supabase: Project, over_rest: str, engine: Engine) -> None:
    def nonsense(number: int) -> None:
        answers = [(502, "<html>"), (200, "<html>"), (200, "{}"), (503, ""), (429, "{}"), (500, '{"code": 1}')]
        for status, body in answers:
            supabase.gateway.answer("", status, body)

    under_load(over_rest, engine, nonsense)


def test_a_black_hole_is_noticed_and_left_when_it_ends(supabase: Project, over_rest: str, engine: Engine) -> None:
    with events.capture() as seen:

        def hole(number: int) -> None:
            before = [name for name, _ in seen].count("database.lost")
            supabase.gateway.black_hole(True)
            wait_until(lambda: [name for name, _ in seen].count("database.lost") > before, 30)
            supabase.gateway.black_hole(False)

        under_load(over_rest, engine, hole, times=2)
        assert [name for name, _ in seen].count("database.back") >= 2


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    server = OwnServer(tmp_path_factory.mktemp("own") / "pg")
    yield server
    server.close()


def test_postgres_that_crashes_under_load_behind_postgrest(own: OwnServer) -> None:
    with own.connect() as connection:
        engine = prepare_project(own, connection)
        with project(own.url) as made:
            dsn = Dsn(made.dsn)
            dsn.worker = made.settings()
            hows = iter((signal.SIGQUIT, signal.SIGKILL))

            def crash(number: int) -> None:
                connection.close()
                own.crash(next(hows))
                own.start()
                engine.connection = own.connect()

            under_load(dsn, engine, crash, times=2)
            engine.connection.close()


def prepare_project(own: OwnServer, connection: psycopg.Connection[Any]) -> Engine:
    prepare_roles(own.url)
    password = psycopg.conninfo.conninfo_to_dict(own.url)["password"]
    connection.execute(psycopg.sql.SQL("alter role authenticator password {}").format(password))
    # On Supabase these roles are there before the schema.
    connection.execute("call queue_worker_data.lock_down()")
    return prepare(connection)


def test_a_worker_that_starts_while_the_api_is_away_waits_for_it(
    supabase: Project, over_rest: str, engine: Engine, tmp_path: Path
) -> None:
    supabase.postgrest.stop()
    load = Load()
    with events.capture() as seen, running(over_rest, app_of(load.handle)) as worker:
        wait_until(lambda: "database.lost" in [name for name, _ in seen], 20)
        assert worker.code is None
        supabase.postgrest.start()
        wait_until(lambda: engine.count("archive") == TOTAL, 60)
    assert load.done == TOTAL
