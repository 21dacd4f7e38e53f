"""Work that several connections do at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg


def race(dsn: str, count: int, work: Callable[[psycopg.Connection[Any], int], Any]) -> list[Any]:
    """Run `work(connection, number)` in `count` threads that begin together; returns what they returned."""
    ready = threading.Barrier(count)

    def one(number: int) -> Any:
        with psycopg.connect(dsn, autocommit=True) as connection:
            ready.wait(30)
            return work(connection, number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))
