"""Whether a transaction pooler stands before the database: by its port, or by what it gives away."""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg

from queue_worker.errors import TransportUnavailable
from queue_worker.transport.postgres import connect, is_pooler

_OTHERS = 3


def detect(conninfo: str) -> bool:
    """Whether a pooler gives every transaction another server; opens up to four connections, one where there is none.

    False where nobody answers. Raises ConfigError for an address that is none.
    """
    if is_pooler(conninfo):
        return True
    with contextlib.ExitStack() as stack:
        try:
            first = stack.enter_context(connect(conninfo, pooler=True))
            server = _server(first)
            # A server announces its process id when one connects; a pooler announces a number of its own.
            if server == first.info.backend_pid:
                return False
            for _ in range(_OTHERS):
                # In session mode that server would be the first connection's alone.
                if _server(stack.enter_context(connect(conninfo, pooler=True))) == server:
                    return True
        except (TransportUnavailable, psycopg.Error):
            pass
    return False


def _server(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("select pg_catalog.pg_backend_pid()").fetchone()
    return int(row[0]) if row else 0
