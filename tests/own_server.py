"""A Postgres of one test, which may be crashed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psycopg

from queue_worker import embedded, migrate
from queue_worker.embedded_supervisor import postmaster
from tests.helpers import wait_until
from tests.proxy import Proxy


class OwnServer:
    """A Postgres of one test, with default durability, behind a proxy that always knows where it is."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._server = embedded.ensure(root)
        migrate.up(self._server.url)
        self.proxy = Proxy(("127.0.0.1", self._server.port))
        self.url = self.proxy.url(self._server.tcp_url)

    def crash(self, how: signal.Signals) -> None:
        """SIGQUIT is what `pg_ctl -m immediate` sends; SIGKILL leaves even that to the next start."""
        os.kill(self._server.pid, how)
        wait_until(lambda: postmaster(self._server.data_dir)[0] != self._server.pid or not _alive(self._server.pid))

    def start(self) -> None:
        old, self._server = self._server, embedded.ensure(self.root)
        old.close()
        self.proxy.target = ("127.0.0.1", self._server.port)

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._server.url, autocommit=True)

    def close(self) -> None:
        self.proxy.close()
        self._server.close()
        embedded.stop(self.root, delete=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
