"""Where the settings say the database is, and the connections of a program that is no worker."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from queue_worker import embedded
from queue_worker.config import Settings
from queue_worker.errors import ConfigError
from queue_worker.health import alive
from queue_worker.schema_name import use
from queue_worker.transport import Database, Transport
from queue_worker.transport.database import PostgresDatabase
from queue_worker.transport.pooler import detect
from queue_worker.transport.rest_errors import NEEDS_URL
from queue_worker.transport.transactions import TransactionPool

if TYPE_CHECKING:
    from queue_worker.transport.supabase import SupabaseDatabase


def conninfo_of(settings: Settings) -> Callable[[], str]:
    """Return a function that tells where the database is, and brings an embedded one back that died.

    Raises ConfigError when no database is set.
    """
    settings.require_database()
    use(settings.db_schema)
    if settings.transport == "supabase":
        raise ConfigError(NEEDS_URL)
    if settings.transport == "postgres":
        dsn = settings.dsn or ""
        return lambda: dsn
    return _Embedded(settings)


class _Embedded:
    def __init__(self, settings: Settings) -> None:
        self._root = settings.state_dir
        self._server: embedded.EmbeddedServer | None = None
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            if self._server is None or not alive(self._server.pid):
                # The new share is taken before the old one is dropped, so that the server never looks unused.
                old, self._server = self._server, embedded.ensure(self._root)
                if old is not None:
                    old.close()
            return self._server.url


def pooler_of(settings: Settings) -> bool | None:
    """Return what the settings say of a transaction pooler; None: look at the port."""
    return {"auto": None, "yes": True, "no": False}[settings.pooler]


def open_database(settings: Settings, *, look: bool = False) -> Database:
    """Return the database that the settings name; raises ConfigError.

    `look`: connect once to find out whether a transaction pooler stands before it, where the settings leave that open.
    """
    if settings.transport == "supabase":
        return _over_rest(settings)
    conninfo = conninfo_of(settings)
    pooler = pooler_of(settings)
    if pooler is None and look and settings.transport == "postgres":
        pooler = detect(conninfo())
    return PostgresDatabase(conninfo, pooler=pooler, pool_size=settings.transaction_pool_size)


def _over_rest(settings: Settings) -> SupabaseDatabase:
    use(settings.db_schema)
    # Here, so that nobody else loads it.
    from queue_worker.transport.supabase import SupabaseDatabase

    url, key = settings.supabase_url or "", settings.supabase_service_role_key
    return SupabaseDatabase(
        url,
        key.get_secret_value() if key else "",
        answer_seconds=min(_REST_ANSWER, settings.call_timeout_seconds),
    )


_REST_ANSWER = 10.0
"""The longest wait for an answer over REST, in seconds: Supabase ends a statement of the API after 8."""

_PRODUCERS_POOL = 4
_pools: dict[Hashable, Transport] = {}
_opening = threading.Lock()


def producer_pool(database: Settings | str) -> Transport:
    """Return the pool of this process for a database, one however many ask for it; opened on first use.

    `database`: settings, or a URL. Raises ConfigError.
    """
    if isinstance(database, str):
        address = database
        return _shared(("url", address, None), lambda: address, None, _PRODUCERS_POOL)
    if database.transport == "supabase":
        return _shared_rest(database)
    pooler = pooler_of(database)
    key = (database.transport, database.dsn or database.state_dir.absolute(), pooler)
    with _opening:
        found = _pools.get(key)
    if found is not None:
        return found
    return _shared(key, conninfo_of(database), pooler, database.transaction_pool_size)


def _shared_rest(settings: Settings) -> Transport:
    key = settings.supabase_service_role_key
    name = ("rest", settings.supabase_url, key.get_secret_value() if key else "")
    with _opening:
        if name not in _pools:
            _pools[name] = _over_rest(settings).producers()
        return _pools[name]


def _shared(key: Hashable, conninfo: Callable[[], str], pooler: bool | None, size: int) -> Transport:
    with _opening:
        found = _pools.get(key)
    if found is not None:
        return found
    # Without the lock: a database that does not answer must not hold up the producers of another one.
    known = detect(conninfo()) if pooler is None else pooler
    with _opening:
        if key not in _pools:
            _pools[key] = TransactionPool(conninfo, pooler=known, size=size, receipts=True)
        return _pools[key]


def close_pools() -> None:
    """Close the connections of all producers of this process; the next call of one opens them again."""
    with _opening:
        found = list(_pools.values())
        _pools.clear()
    for pool in found:
        pool.close()


def _forget_pools() -> None:
    # A forked child must not speak on its parent's connections, nor close them; and whoever held the lock is not here.
    global _opening  # noqa: PLW0603
    _opening = threading.Lock()
    _kept.extend(_pools.values())
    _pools.clear()


_kept: list[Any] = []
if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forget_pools)
