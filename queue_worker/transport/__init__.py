"""How SQL functions are reached. One method carries everything: `call`; all queue semantics lie in SQL below it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


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
