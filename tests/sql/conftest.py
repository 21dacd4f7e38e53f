"""Fixtures of the SQL tests."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.sql.engine import Engine


@pytest.fixture
def engine(db: psycopg.Connection[Any]) -> Engine:
    """A fresh queue `work`."""
    return Engine(db).create()
