"""Fixtures of the worker tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from queue_worker.embedded import EmbeddedServer
from tests.proxy import Proxy
from tests.sql.engine import Engine
from tests.worker.processes import Zygote


@pytest.fixture
def engine(db: psycopg.Connection[Any]) -> Engine:
    """A fresh queue `work`, seen from outside the worker."""
    return Engine(db).create()


@pytest.fixture
def effects(engine: Engine) -> Engine:
    """The queue `work`, and a table that takes every effect, twice if need be."""
    engine.rows("create table effects (key bigint not null)")
    return engine


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[Proxy]:
    """A proxy in front of the shared server."""
    with Proxy(("127.0.0.1", server.port)) as running:
        yield running


@pytest.fixture
def proxied(dsn: str, server: EmbeddedServer, proxy: Proxy) -> str:
    """The test's database through the proxy."""
    name = dsn.partition("@/")[2].partition("?")[0]
    return proxy.url(server.tcp_url).rpartition("/")[0] + f"/{name}"


@pytest.fixture(scope="module")
def shared_zygote() -> Iterator[Zygote]:
    running = Zygote()
    yield running
    running.close()


@pytest.fixture
def zygote(shared_zygote: Zygote) -> Iterator[Zygote]:
    """Starts real worker processes; kills those that the test leaves."""
    yield shared_zygote
    shared_zygote.kill_all()
