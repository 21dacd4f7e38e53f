"""A real pgbouncer in transaction mode before the server of the tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests.helpers import wait_until
from tests.supabase.postgrest import free_port

_CONFIG = """
[databases]
* = host={host} port={server_port} user={user}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
query_wait_timeout = 10
server_lifetime = 3600
admin_users = postgres
"""


class Pooler:
    """One pgbouncer process; `start` and `stop` may be called again and again, its port stays."""

    def __init__(self, url: str, *, size: int = 2, mode: str = "transaction", user: str = "postgres") -> None:
        program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        if program is None:
            raise RuntimeError("these tests need pgbouncer: apt install pgbouncer")
        parts = conninfo_to_dict(url)
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/{quote(str(parts['dbname']))}"
        self._program = program
        # Not under pytest's folder, which is closed to others: as root pgbouncer wants another user.
        self._folder = Path(tempfile.mkdtemp(prefix="queue-worker-pooler-"))
        self._folder.chmod(0o755)
        self._config = self._folder / "pgbouncer.ini"
        values = {"host": parts["host"], "server_port": parts["port"], "port": self.port, "mode": mode, "size": size}
        values["user"] = user
        self._config.write_text(_CONFIG.format(**values))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [self._program, "-q", str(self._config)]
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user)
        wait_until(self._answers, 10, "pgbouncer did not become ready")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "pgbouncer ended"
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
            self._process.kill()
            self._process.wait()
            self._process = None

    def delete(self) -> None:
        shutil.rmtree(self._folder)


@contextlib.contextmanager
def pooler(url: str, *, size: int = 2, mode: str = "transaction", user: str = "postgres") -> Iterator[Pooler]:
    """Run a pooler before the database `url` while the block runs; on the server it is `user`."""
    made = Pooler(url, size=size, mode=mode, user=user)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        made.delete()
