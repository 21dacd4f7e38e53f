"""Fixtures of the payment tests, as a plugin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from payment_context import Desk
from psycopg.rows import dict_row

DEMO = Path(__file__).parents[2] / "sql" / "demo"


@pytest.fixture
def desk(dsn: str) -> Iterator[Desk]:
    """The user's side of payments: the demo's table, functions and trigger, and the queue."""
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as connection:
        connection.execute("select queue_worker.create_queue('payments')")
        connection.execute((DEMO / "payments.sql").read_bytes())
        yield Desk(dsn, connection)


@pytest.fixture
def actions(desk: Desk) -> Desk:
    """The same, with the demo's captures and refunds."""
    desk.connection.execute((DEMO / "refunds.sql").read_bytes())
    return desk
