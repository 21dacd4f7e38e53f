"""Fixtures of the producers' tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

import queue_worker
from tests.sql.engine import Engine
from tests.stages import environment_of


@pytest.fixture
def engine(db: psycopg.Connection[Any]) -> Engine:
    """A fresh queue `work`, seen from outside."""
    return Engine(db).create()


@pytest.fixture(autouse=True)
def environment(dsn: str, clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The program's environment names the database; what its producers opened is closed after the test."""
    for name, value in environment_of(dsn).items():
        monkeypatch.setenv(name, value)
    yield
    queue_worker.close()
