"""Fixtures that every test may use: a real Postgres, a fresh database, a clean environment, and a leak check."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from queue_worker import embedded, migrate
from tests import pgmq_151
from tests.blackbox import forks
from tests.helpers import child_processes, wait_until
from tests.pooler import pooler
from tests.stages import PLAIN, Dsn, Stage, stages_of
from tests.supabase.postgrest import prepare_roles
from tests.supabase.project import project

_ROOM = 4 * 2**30

_OURS = ("QUEUE_WORKER_", "SMTP_", "DB_", "SUPABASE_", "STRIPE_", "RESEND_")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the developer's shell or `.env` reaches a test."""
    for name in list(os.environ):
        if name.startswith(_OURS) or name in ("DATABASE_URL", "PORT"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """A test that leaves a thread or a child process behind fails."""
    threads, children = set(threading.enumerate()), child_processes()
    yield
    wait_until(
        lambda: not {t for t in threading.enumerate() if t.is_alive()} - threads,
        10,
        lambda: f"threads left behind: {set(threading.enumerate()) - threads}",
    )
    wait_until(
        lambda: not child_processes() - children,
        10,
        lambda: f"processes left behind: {child_processes() - children}",
    )


@pytest.fixture(scope="session", autouse=True)
def commands() -> Iterator[None]:
    """What `tests.blackbox.program` runs its commands by; there before the first test looks for leaks."""
    with forks.server():
        yield


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`: two workers a processor, because tests mostly wait for processes, leases and pauses."""
    return 2 * len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2 * (os.cpu_count() or 1)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The last one out stops the server and deletes its data, wherever the launcher put them."""
    if not hasattr(session.config, "workerinput"):
        factory: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
        root = _postgres_root(factory.getbasetemp())
        embedded.stop(root, delete=True)
        shutil.rmtree(root, ignore_errors=True)


def _shared_folder(factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of a run under xdist."""
    base = factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


def _postgres_root(base: Path) -> Path:
    """Where the server of a run lives: in memory, where there is room. A database is 400 files, made for every test."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _ROOM:
        return memory / f"queue-worker-{hashlib.sha256(os.fsencode(base)).hexdigest()[:12]}"
    return base / "postgres"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.EmbeddedServer]:
    """The one Postgres of a test run; crash safety is off, tests that crash Postgres start their own."""
    settings = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "300"}
    with embedded.ensure(_postgres_root(_shared_folder(tmp_path_factory)), settings=settings) as running:
        yield running


def _make_template(server: embedded.EmbeddedServer, folder: Path, pgmq: str) -> str:
    name = f"template_{pgmq.replace('.', '_')}"
    with (folder / "template.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with psycopg.connect(server.url, autocommit=True) as admin:
            if not admin.execute("select 1 from pg_database where datname = %s", [name]).fetchone():
                admin.execute("create database template_new")
                url = url_of(server, "template_new")
                # As on Supabase: the roles of its API are there before the schema, and get nothing of it by name.
                prepare_roles(url)
                if pgmq == "1.5.1":
                    pgmq_151.install(url)
                migrate.up(url)
                admin.execute(f"alter database template_new rename to {name}")
    return name


@pytest.fixture(scope="session")
def template(server: embedded.EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database with pgmq and all migrations, for cloning."""
    return _make_template(server, _shared_folder(tmp_path_factory), PLAIN.pgmq)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of the conformance suite runs on every stage."""
    marker = metafunc.definition.get_closest_marker("conformance")
    if marker and "stage" in metafunc.fixturenames:
        # What a transport cannot do by nature is tested by itself, in tests/supabase/test_unsupported.py.
        stages = [
            pytest.param(one, id=one.name, marks=() if one == PLAIN else pytest.mark.full)
            for one in stages_of(**marker.kwargs)
        ]
        metafunc.parametrize("stage", stages, indirect=True)


@pytest.fixture
def stage(request: pytest.FixtureRequest) -> Stage:
    """How workers reach the database of this test, see `tests.stages`."""
    return getattr(request, "param", PLAIN)


def url_of(server: embedded.EmbeddedServer, database: str) -> str:
    """Return the URL of another database of the server."""
    return server.url.replace("/postgres?", f"/{database}?")


def _database(server: embedded.EmbeddedServer, template: str | None) -> Iterator[str]:
    name = f"t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute(f"create database {name}" + (f" template {template} strategy file_copy" if template else ""))
        yield url_of(server, name)
        # Whoever is still connected leaked its connection.
        count = "select count(*) from pg_stat_activity where datname = %s and backend_type = 'client backend'"
        wait_until(
            lambda: admin.execute(count, [name]).fetchone() == (0,),
            10,
            lambda: f"connections left open: {admin.execute(count, [name]).fetchone()}",
        )
        admin.execute(f"drop database {name} with (force)")


@pytest.fixture
def dsn(
    server: embedded.EmbeddedServer, template: str, stage: Stage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A fresh database with pgmq and the schema; its URL."""
    if stage.pgmq != PLAIN.pgmq:
        template = _make_template(server, _shared_folder(tmp_path_factory), stage.pgmq)
    with (
        contextlib.contextmanager(_database)(server, template) as url,
        _reached(stage, url) as reached,
    ):
        yield reached


@contextlib.contextmanager
def _reached(stage: Stage, url: str) -> Iterator[str]:
    """The URL `url` that knows how a worker gets there."""
    reached = Dsn(url)
    reached.worker = {"database_url": url}
    if stage.transport == "pooler":
        with pooler(url, size=8) as front:
            reached.worker = {"database_url": front.url, "pooler": "yes"}
            yield reached
    elif stage.transport == "rest":
        with project(url) as front:
            reached.worker = front.settings()
            yield reached
    else:
        yield reached


@pytest.fixture
def empty_dsn(server: embedded.EmbeddedServer) -> Iterator[str]:
    """A fresh database with nothing in it; its URL."""
    yield from _database(server, None)


@pytest.fixture
def db(dsn: str) -> Iterator[psycopg.Connection[tuple]]:
    """An autocommit connection to the test's database."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection
