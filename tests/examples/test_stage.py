"""What the examples share: a clock that can be put forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from examples.stage import advance
from queue_worker import Queue


@pytest.fixture
def queue(dsn: str, db: psycopg.Connection[Any]) -> Iterator[Queue]:
    db.execute("select queue_worker.create_queue('work')")
    with ConnectionPool(dsn, min_size=1, max_size=1) as pool:
        yield Queue("work", database=pool)


def test_the_clock_moves_delayed_messages_and_retries_and_leaves_the_lease_of_a_running_one(
    queue: Queue, db: psycopg.Connection[Any]
) -> None:
    retried, running = queue.send({}, priority=9), queue.send({})
    (first,) = queue.fetch(1)
    assert first.msg_id == retried
    first.retry(delay=500)
    (held,) = queue.fetch(1, lease=600)
    delayed = queue.send({}, delay=100)
    assert advance(db, "work", 200) == 1
    due = dict(db.execute("select msg_id, vt <= clock_timestamp() from pgmq.q_work").fetchall())
    assert due == {retried: False, running: False, delayed: True}
    assert advance(db, "work", 400) == 0
    due = dict(db.execute("select msg_id, vt <= clock_timestamp() from pgmq.q_work").fetchall())
    assert due == {retried: True, running: False, delayed: True}
    held.complete()
