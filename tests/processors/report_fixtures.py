"""Fixtures of the report tests, as a plugin."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.rows import dict_row

from queue_worker.transport.transactions import TransactionPool
from tests.processors.report_context import Desk


@pytest.fixture
def reports_desk(dsn: str) -> Iterator[Desk]:
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as connection:
        for queue in ("reports", "email"):
            connection.execute("select queue_worker.create_queue(%s)", [queue])
        pool = TransactionPool(lambda: dsn, pooler=False, size=2)
        yield Desk(connection, pool)
        pool.close()
