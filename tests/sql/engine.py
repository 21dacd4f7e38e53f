"""The engine's SQL functions as short Python calls, for tests of SQL alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import namedtuple_row

Receipt = tuple[int, int, datetime]


class Trouble(NamedTuple):
    failures: int
    lost: int
    settled_ct: int | None


class Engine:
    """One queue over one autocommit connection."""

    def __init__(self, connection: psycopg.Connection[Any], queue: str = "work") -> None:
        self.connection = connection
        self.queue = queue

    def rows(self, query: str, *params: Any) -> list[Any]:
        with self.connection.cursor(row_factory=namedtuple_row) as cursor:
            cursor.execute(query.replace("QUEUE", self.queue), params or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, *params: Any) -> Any:
        return self.rows(query, *params)[0][0]

    def create(self) -> Engine:
        self.rows("select queue_worker.create_queue(%s)", self.queue)
        return self

    def send(self, payload: Any = None, headers: Any = None) -> int:
        body = json.dumps({} if payload is None else payload)
        head = None if headers is None else json.dumps(headers)
        return int(self.value("select pgmq.send(%s, %s::jsonb, %s::jsonb)", self.queue, body, head))

    def fill(self, count: int) -> None:
        self.rows(
            "insert into pgmq.q_QUEUE (vt, message) select clock_timestamp(), jsonb_build_object('n', g)"
            " from generate_series(1, %s) g",
            count,
        )

    def claim(
        self,
        count: int = 10,
        *,
        lease: float = 60,
        suspects: int = 0,
        max_lost: int = 5,
        worker: str = "w",
        sleep: bool = False,
    ) -> list[Any]:
        """Every row of the answer, messages and others."""
        return self.rows(
            "select * from queue_worker.claim(%s, %s, %s, %s, %s, %s, %s)",
            self.queue,
            count,
            lease,
            suspects,
            max_lost,
            worker,
            sleep,
        )

    def take(self, count: int = 1, **options: Any) -> list[Receipt]:
        """The receipts of the messages that a claim brought, by message id."""
        found = [receipt(row) for row in self.claim(count, **options) if row.kind == "job"]
        return sorted(found)

    def take_one(self, **options: Any) -> Receipt:
        (one,) = self.take(1, **options)
        return one

    def settle(
        self, done: Sequence[Receipt] = (), others: Sequence[tuple[Any, ...]] = (), on_success: str = "archive"
    ) -> dict[int, str]:
        """`others`: (receipt, kind, delay, reason, error). Answers what was not settled as asked, by message id."""
        return {row.msg_id: row.kind for row in self.settle_rows(done, others, on_success)}

    def settle_rows(
        self, done: Sequence[Receipt] = (), others: Sequence[tuple[Any, ...]] = (), on_success: str = "archive"
    ) -> list[Any]:
        return self.rows(
            "select * from queue_worker.settle(%s, %s::bigint[], %s::int[], %s::timestamptz[], %s,"
            " %s::bigint[], %s::int[], %s::timestamptz[], %s::text[], %s::float8[], %s::text[], %s::text[], 'w')",
            self.queue,
            *columns(done),
            on_success,
            *columns([one[0] for one in others]),
            [one[1] for one in others],
            [None if one[2] is None else float(one[2]) for one in others],
            [one[3] for one in others],
            [one[4] for one in others],
        )

    def extend(self, receipts: Sequence[Receipt], lease: float = 60) -> list[int]:
        rows = self.rows(
            "select * from queue_worker.extend(%s, %s::bigint[], %s::int[], %s::timestamptz[], %s)",
            self.queue,
            *columns(receipts),
            lease,
        )
        return [row[0] for row in rows]

    def release(self, receipts: Sequence[Receipt], delay: float = 0) -> int:
        return int(
            self.value(
                "select queue_worker.release(%s, %s::bigint[], %s::int[], %s::timestamptz[], %s)",
                self.queue,
                *columns(receipts),
                delay,
            )
        )

    def hold(self, one: Receipt) -> bool:
        return bool(self.value("select queue_worker.hold(%s, %s, %s, %s)", self.queue, *one))

    def age(self, *ids: int) -> None:
        """Let leases end: all, or those of `ids`."""
        self.rows(
            "update pgmq.q_QUEUE set vt = now() - interval '1 s' where %s or msg_id = any (%s)", not ids, list(ids)
        )

    def state(self, msg_id: int) -> Any:
        """(read_ct, visible, vt, enqueued_at) of a message in the queue, or None."""
        found = self.rows(
            "select read_ct, vt <= clock_timestamp() as visible, vt, enqueued_at from pgmq.q_QUEUE where msg_id = %s",
            msg_id,
        )
        return found[0] if found else None

    def trouble(self, msg_id: int) -> Trouble | None:
        found = self.rows(
            "select failures, lost, settled_ct from queue_worker_data.trouble where queue = %s and msg_id = %s",
            self.queue,
            msg_id,
        )
        return Trouble(*found[0]) if found else None

    def places(self, msg_id: int) -> list[str]:
        """Where a message is: queue, archive, dead."""
        return [
            row[0]
            for row in self.rows(
                "select 'queue' from pgmq.q_QUEUE where msg_id = %s union all"
                " select 'archive' from pgmq.a_QUEUE where msg_id = %s union all"
                " select 'dead' from queue_worker_data.dead_letters where queue = %s and msg_id = %s",
                msg_id,
                msg_id,
                self.queue,
                msg_id,
            )
        ]

    def count(self, place: str) -> int:
        table = {"queue": "pgmq.q_QUEUE", "archive": "pgmq.a_QUEUE", "dead": "queue_worker_data.dead_letters"}[place]
        return int(self.value(f"select count(*) from {table}"))


def receipt(row: Any) -> Receipt:
    return row.msg_id, row.read_ct, row.enqueued_at


def columns(receipts: Sequence[Receipt]) -> list[list[Any]]:
    return [[one[part] for one in receipts] for part in (0, 1, 2)]
