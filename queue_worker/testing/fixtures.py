"""A pytest plugin: `pytest_plugins = ["queue_worker.testing.fixtures"]` in the top-level conftest.py.

`queue_db` is a fresh database for each test, see `QueueDatabase`, on one embedded Postgres for the whole run (the extra
`embedded`).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from queue_worker import embedded, migrate
from queue_worker.testing.database import QueueDatabase
from queue_worker.transport.postgres import connect

_TEMPLATE = "queue_worker_template"
_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@pytest.fixture(scope="session")
def queue_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.EmbeddedServer]:
    """The embedded Postgres of this run, with a database that has the schema; gone after the last test."""
    root = tmp_path_factory.mktemp("queue_worker")
    with embedded.ensure(root, settings=_SETTINGS) as server:
        _administer(server, "create database %I", _TEMPLATE)
        migrate.up(_url(server, _TEMPLATE))
        yield server
    embedded.stop(root, delete=True)


@pytest.fixture
def queue_db(queue_server: embedded.EmbeddedServer, tmp_path: Path) -> Iterator[QueueDatabase]:
    """A fresh database with the schema, and a worker for it: `queue_db.send(...)`, then `queue_db.work(app)`."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    folder = tmp_path / "queue_worker"
    folder.mkdir()
    _administer(queue_server, "create database %I template %I", name, _TEMPLATE)
    try:
        yield QueueDatabase(_url(queue_server, name), folder)
    finally:
        # Force: a connection that a test forgot must not fail the next one.
        _administer(queue_server, "drop database %I with (force)", name)


def _administer(server: embedded.EmbeddedServer, statement: str, *names: str) -> None:
    connection = connect(server.url, pooler=False)
    try:
        row = connection.execute(
            "select pg_catalog.format(%s, variadic %s::text[])", [statement, list(names)]
        ).fetchone()
        if row is not None:
            connection.execute(row[0].encode())
    finally:
        connection.close()


def _url(server: embedded.EmbeddedServer, database: str) -> str:
    return server.url.replace("/postgres?", f"/{database}?")
