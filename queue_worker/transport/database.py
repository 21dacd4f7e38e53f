"""Where the database is, and the connections a process opens to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field

from queue_worker.schema_name import current, use
from queue_worker.transport import Listener
from queue_worker.transport.postgres import PostgresListener, PostgresTransport, is_pooler
from queue_worker.transport.transactions import TransactionPool
from queue_worker.transport.watch import Watch


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """A Postgres URL and whether a transaction pooler answers there."""

    conninfo: str = field(repr=False)
    pooler: bool
    environment: str

    def open(self) -> PostgresDatabase:
        """See `Address`."""
        use(self.environment)
        return PostgresDatabase(lambda: self.conninfo, pooler=self.pooler, pool_size=1)


class PostgresDatabase:
    """Makes the connections of one process; opens none itself.

    `conninfo` is asked at each connect. `pooler`: None looks at the port. `pool_size` bounds the connections of
    handlers.
    """

    name = "postgres"

    def __init__(self, conninfo: Callable[[], str], *, pooler: bool | None = None, pool_size: int = 4) -> None:
        self.conninfo = conninfo
        self.pooler = is_pooler(conninfo()) if pooler is None else pooler
        self.pool = TransactionPool(conninfo, pooler=self.pooler, size=pool_size)
        self._opened: list[PostgresTransport] = []

    @property
    def description(self) -> str:
        """One word or two for the start-up line."""
        return "postgres (transaction pooler)" if self.pooler else "postgres"

    def about(self) -> dict[str, str]:
        """See `Database`."""
        kind = "in transaction mode: every transaction may have another server" if self.pooler else "none found"
        return {"connection": "postgres", "pooler": kind}

    def exposed_schemas(self) -> None:
        """Return None: no API is on the way."""
        return

    def transport(self, *, receipts: bool = False, statement_seconds: float | None = None) -> PostgresTransport:
        """Return a transport with a connection of its own; see `Database`."""
        transport = PostgresTransport(
            self.conninfo, pooler=self.pooler, receipts=receipts, statement_seconds=statement_seconds
        )
        self._opened.append(transport)
        return transport

    def listener(self, queues: Sequence[str], cycle_seconds: float) -> Listener:
        """Return a listener for NOTIFY; where that cannot arrive, one that asks for all queues at once."""
        if self.pooler:
            return Watch(self.transport(), queues, cycle_seconds)
        return PostgresListener(self.conninfo)

    def address(self) -> PostgresAddress:
        """See `Database`."""
        return PostgresAddress(self.conninfo(), self.pooler, current())

    def cut_stuck(self, seconds: float, threads: Set[int] = frozenset()) -> int:
        """Abort calls that have waited for an answer longer than `seconds`; returns how many.

        `threads`: those of handlers whose time is over; what they have open is cut at once.
        """
        stuck = [transport for transport in self._opened if transport.stuck_for > seconds]
        for transport in stuck:
            transport.abort()
        return len(stuck) + self.pool.cut_stuck(threads)

    @contextmanager
    def watched(self, seconds: float) -> Iterator[None]:
        """Call `cut_stuck` all the time while the block runs, for calls that nobody else watches."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(min(0.25, seconds)):
                self.cut_stuck(seconds)

        thread = threading.Thread(target=watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def close(self) -> None:
        """Close every connection."""
        for transport in self._opened:
            # A thread that is still in a call gets an error; its connection must not be freed under it.
            if transport.stuck_for:
                transport.abort()
            else:
                transport.close()
        self.pool.close()
