"""How values travel between Python and Postgres: receipts in binary, JSON as text, arrays without a detour.

A receipt's timestamp never becomes a datetime: converting it to and fro costs a quarter of the drain rate.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import DataError, pq
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.types.datetime import TimestamptzBinaryLoader, TimestamptzLoader
from psycopg.types.json import Jsonb, set_json_loads

from queue_worker.transport import BigInts, Ints, JsonArray, Stamps
from queue_worker.transport.json_text import dump_json, load_json

_TIMESTAMPTZ, _TIMESTAMPTZ_ARRAY, _INT8_ARRAY, _INT4_ARRAY = 1184, 1185, 1016, 1007
_INT8, _INT4 = 20, 23


class Stamp(bytes):
    """A timestamptz as Postgres sent it: eight bytes, microseconds since 2000."""


class _StampLoader(Loader):
    format = pq.Format.BINARY

    def load(self, data: Buffer) -> Stamp:
        return Stamp(data)


class _TextLoader(TimestamptzLoader):
    def load(self, data: Buffer) -> datetime:
        try:
            return super().load(data)
        except DataError:
            return _end_of_time(bytes(data).startswith(b"-") or bytes(data).endswith(b"BC"))


class _BinaryLoader(TimestamptzBinaryLoader):
    def load(self, data: Buffer) -> datetime:
        try:
            return super().load(data)
        except DataError:
            return _end_of_time(bytes(data)[0] > 127)


def _end_of_time(past: bool) -> datetime:
    """Return what stands for a time that Python cannot hold, such as infinity: a list shows the other rows too.

    A day from the ends of what Python holds, so that it can be shown in any time zone.
    """
    return datetime(1, 1, 2, tzinfo=UTC) if past else datetime(9999, 1, 1, tzinfo=UTC)


class _StampDumper(Dumper):
    format = pq.Format.BINARY
    oid = _TIMESTAMPTZ

    def dump(self, obj: Stamp) -> bytes:
        return obj


def _array(element_oid: int, count: int, elements: bytes) -> bytes:
    """Return Postgres' binary form of a one-dimensional array without nulls."""
    if not count:
        return struct.pack("!iiI", 0, 0, element_oid)
    return struct.pack("!iiIii", 1, 0, element_oid, count, 1) + elements


class _StampsDumper(Dumper):
    format = pq.Format.BINARY
    oid = _TIMESTAMPTZ_ARRAY

    def dump(self, obj: Stamps) -> bytes:
        size = b"\0\0\0\x08"
        try:
            joined = size.join(obj)
        except TypeError:
            # Fetched over REST and settled on a connection of the caller's own.
            joined = size.join(one if isinstance(one, bytes) else _binary(one) for one in obj)
        return _array(_TIMESTAMPTZ, len(obj), size + joined if obj else b"")


_2000 = datetime(2000, 1, 1, tzinfo=UTC)


def _binary(text: str) -> bytes:
    """Return a timestamp that REST gave as text as Postgres sends it in binary."""
    return struct.pack("!q", (datetime.fromisoformat(text) - _2000) // timedelta(microseconds=1))


class _BigIntsDumper(Dumper):
    format = pq.Format.BINARY
    oid = _INT8_ARRAY

    def dump(self, obj: BigInts) -> bytes:
        flat = [part for value in obj for part in (8, value)]
        return _array(_INT8, len(obj), struct.pack("!" + "iq" * len(obj), *flat))


class _IntsDumper(Dumper):
    format = pq.Format.BINARY
    oid = _INT4_ARRAY

    def dump(self, obj: Ints) -> bytes:
        flat = [part for value in obj for part in (4, value)]
        return _array(_INT4, len(obj), struct.pack("!" + "ii" * len(obj), *flat))


def register(context: AdaptContext, *, receipts: bool) -> None:
    """Teach a connection, or one cursor, our types. `receipts`: for the engine, so timestamps come back as `Stamp`."""
    adapters = context.adapters
    ours = ((Stamp, _StampDumper), (Stamps, _StampsDumper), (BigInts, _BigIntsDumper), (Ints, _IntsDumper))
    for kind, dumper in ours:
        adapters.register_dumper(kind, dumper)
    if receipts:
        adapters.register_loader(_TIMESTAMPTZ, _StampLoader)
    set_json_loads(load_json, context=context)


def bear_odd_times(cursor: psycopg.Cursor[Any]) -> None:
    """Let one cursor, for a call of ours, read times that Python cannot hold; a user's own statements fail at them."""
    if cursor.adapters.get_loader(_TIMESTAMPTZ, pq.Format.BINARY) is not _StampLoader:
        cursor.adapters.register_loader(_TIMESTAMPTZ, _TextLoader)
        cursor.adapters.register_loader(_TIMESTAMPTZ, _BinaryLoader)


def to_sql(value: Any) -> Any:
    """Wrap what must travel as JSON: dictionaries, and lists of them."""
    if isinstance(value, (dict, JsonArray)) or (type(value) is list and value and isinstance(value[0], dict)):
        return Jsonb(value, dumps=dump_json)
    return value
