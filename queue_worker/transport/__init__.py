"""How SQL functions are reached. One method carries everything: `call`; all queue semantics lie in SQL below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from queue_worker.message import Receipt
from queue_worker.processor import Transaction


class BigInts(list[int]):
    """Values for a `bigint[]` argument."""


class Ints(list[int]):
    """Values for an `int[]` argument."""


class JsonArray(list[Any]):
    """Values for a `jsonb` argument that is an array, an empty one included."""


class Stamps(list[Any]):
    """Opaque timestamps for a `timestamptz[]` argument, as the transport itself returned them."""


@dataclass(slots=True)
class Rows:
    """The answer of a call: `rows` are tuples in the order of `columns`."""

    columns: tuple[str, ...] = ()
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    def dicts(self) -> list[dict[str, Any]]:
        """Return the rows as dictionaries by column name."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class Transport(Protocol):
    """One way to call SQL functions."""

    def call(self, function: str, params: Mapping[str, Any]) -> Rows:
        """Call `function` (schema-qualified) with named arguments, in a transaction of its own.

        Raises TransportUnavailable (not reached, or lost in mid-call: it may have committed) or CallRefused.
        """

    def abort(self) -> None:
        """Cut a call that stands still, from another thread; that call then raises TransportUnavailable."""

    def close(self) -> None:
        """Close the connection; the next call would open it again."""


class Pool(Transport, Protocol):
    """Calls for handlers and producers, from any thread."""

    def settling(
        self, queue: str, receipt: Receipt, on_success: str, seconds: float, *, counted: bool = False
    ) -> AbstractContextManager[Transaction]:
        """Run the block and settle the message as done, in one transaction.

        `seconds` bounds how long it may last; `counted`: see `done_arguments`. Raises LeaseLost where the receipt is
        stale, TransportUnavailable where nothing was kept, TransportUnsupported where there are no transactions.
        """


class Listener(Protocol):
    """Something that says which queues have work, see `listening`.

    `hears_cancels`: it also says what was cancelled; else whoever runs messages must ask.
    """

    hears_cancels: bool

    def wait(self, seconds: float) -> list[str]: ...

    def abort(self) -> None: ...

    def close(self) -> None: ...


class Address(Protocol):
    """Where a database is; can be pickled, and its text holds no secret."""

    def open(self) -> Database:
        """Return the database, for one handler at a time."""


class Database(Protocol):
    """What one process opens; the composition root makes one."""

    name: str
    pooler: bool

    @property
    def description(self) -> str:
        """One word or two for the start-up line."""

    def about(self) -> dict[str, str]:
        """Return what kind of connection this is, by names for a person; asks nobody."""

    def exposed_schemas(self) -> list[str] | None:
        """Return which schemas the API shows, None where there is no API on the way; raises TransportUnavailable."""

    @property
    def pool(self) -> Pool:
        """The calls of handlers."""

    def conninfo(self) -> str:
        """Return where Postgres is; raises ConfigError where only REST is known."""

    def address(self) -> Address:
        """Return what another process needs to open the same database."""

    def transport(self, *, receipts: bool = False, statement_seconds: float | None = None) -> Transport:
        """Return a transport of its own; `receipts` for the engine's calls.

        `statement_seconds`: the server ends a call that takes longer, where that is possible.
        """

    def listener(self, queues: Sequence[str], cycle_seconds: float) -> Listener | None:
        """Return what wakes loops without their polling, or None."""

    def cut_stuck(self, seconds: float, threads: Set[int] = frozenset()) -> int:
        """Abort calls that have waited longer than `seconds`, and what `threads` have open; returns how many."""

    def watched(self, seconds: float) -> AbstractContextManager[None]:
        """Call `cut_stuck` all the time while the block runs."""

    def close(self) -> None:
        """Close every connection."""
