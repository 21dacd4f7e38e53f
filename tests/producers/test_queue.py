"""`Queue` as a plain producer: what arrives in the queue, how it finds its database, what it refuses."""

from __future__ import annotations

import asyncio
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool
from pydantic import BaseModel

import queue_worker
from queue_worker import Outgoing, Queue
from queue_worker.errors import ConfigError, QueueNotFound, SchemaError, TransportUnavailable, UsageError
from tests.helpers import wait_until
from tests.sql.engine import Engine

pytestmark = pytest.mark.conformance(hosted=True)


class Welcome(BaseModel):
    user_id: int
    day: str = "monday"


def message(engine: Engine, msg_id: int) -> Any:
    found = engine.rows(
        "select message, headers, extract(epoch from vt - enqueued_at)::int as delay, vt from pgmq.q_QUEUE"
        " where msg_id = %s",
        msg_id,
    )
    return found[0]


def connections(db: psycopg.Connection[Any]) -> int:
    row = db.execute(
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        " and application_name = 'queue_worker'"
    ).fetchone()
    return row[0] if row else 0


def test_a_payload_arrives_as_it_was_sent_in_the_database_of_the_environment(engine: Engine) -> None:
    sent = Queue("work").send({"to": "анна@пример.рф", "n": [1, None, 2.5]})
    assert message(engine, sent)[:2] == ({"to": "анна@пример.рф", "n": [1, None, 2.5]}, None)


def test_a_model_is_sent_as_json_and_checked_where_the_queue_knows_its_type(engine: Engine) -> None:
    assert message(engine, Queue("work").send(Welcome(user_id=1))).message == {"user_id": 1, "day": "monday"}
    typed = Queue("work", model=Welcome)
    assert message(engine, typed.send({"user_id": 2})).message == {"user_id": 2}
    with pytest.raises(UsageError, match="the payload does not fit its processor: user_id: Field required"):
        typed.send({"id": 2})
    assert engine.count("queue") == 2


def test_options_travel_with_the_message(engine: Engine) -> None:
    queue = Queue("work")
    one = message(engine, queue.send({}, delay="10 minutes", max_attempts=3, retry_delay=timedelta(minutes=1)))
    assert (one.delay, one.headers) == (600, {"max_attempts": 3, "retry_delay_seconds": 60})
    at = datetime(2031, 1, 1, 9, tzinfo=UTC)
    two = message(engine, queue.send({}, run_at=at, timeout="1m", headers={"trace": "x"}))
    assert (two.vt, two.headers) == (at, {"timeout_seconds": 60, "trace": "x"})


def test_a_batch_has_options_for_all_and_for_single_messages(engine: Engine) -> None:
    ids = Queue("work").send_batch(
        [{"n": 1}, Outgoing({"n": 2}, run_at=datetime(2031, 1, 1, tzinfo=UTC)), Outgoing({"n": 3}, max_attempts=1)],
        delay="1h",
        max_attempts=4,
    )
    rows = [message(engine, one) for one in ids]
    assert [row.message["n"] for row in rows] == [1, 2, 3]
    assert [row.headers["max_attempts"] for row in rows] == [4, 4, 1]
    assert (rows[0].delay, rows[1].vt.year, rows[2].delay) == (3600, 2031, 3600)
    assert Queue("work").send_batch([]) == []


def test_one_bad_message_of_a_batch_sends_none(engine: Engine) -> None:
    with pytest.raises(UsageError, match="NaN"):
        Queue("work").send_batch([{"n": 1}, {"n": float("nan")}])
    with pytest.raises(UsageError, match="max_attempts must be 1 to 1000"):
        Queue("work").send_batch([{"n": 1}, Outgoing({"n": 2}, max_attempts=0)])
    assert engine.count("queue") == 0


# What SQL `send` takes since sql/0012_send.sql.


def test_priority_expiry_and_group_travel_in_the_headers(engine: Engine) -> None:
    one = message(engine, Queue("work").send({}, priority=7, expires_in="1 day"))
    assert one.headers["priority"] == 7
    left = datetime.fromisoformat(one.headers["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=23) < left <= timedelta(days=1)
    with pytest.raises(UsageError, match="priority must be 0 to 100"):
        Queue("work").send({}, priority=101)
    with pytest.raises(UsageError, match='group_key: queue "work" is not ordered'):
        Queue("work").send({}, group_key="g")


def test_a_unique_key_sends_once_while_it_waits(engine: Engine) -> None:
    queue = Queue("work")
    first = queue.send({"n": 1}, unique_key="k")
    assert queue.send({"n": 2}, unique_key="k") == first
    assert queue.send({"n": 3}, unique_key="k", unique_mode="replace", delay="1h") == first
    assert message(engine, first).message == {"n": 3}
    assert engine.count("queue") == 1
    with pytest.raises(UsageError, match="unique_key"):
        queue.send({}, unique_for="1 day")


# ------------------------------------------------------------------------------------------------------- the database


@pytest.mark.conformance(only="direct", hosted=True)
def test_the_env_file_names_the_database_too(engine: Engine, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL")
    with pytest.raises(ConfigError, match="no database is set: set DATABASE_URL"):
        Queue("work").send({})
    Path(".env").write_text(f"DATABASE_URL={dsn}\n")
    Queue("work").send({})
    assert engine.count("queue") == 1


@pytest.mark.conformance(only="direct", hosted=True)
def test_nothing_is_read_or_opened_before_the_first_use(
    db: psycopg.Connection[Any], engine: Engine, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL")
    queue = Queue("work")
    assert connections(db) == 0
    monkeypatch.setenv("DATABASE_URL", dsn)
    queue.send({})
    assert connections(db) == 1


def test_all_queues_of_one_database_share_a_small_pool(db: psycopg.Connection[Any], engine: Engine, dsn: str) -> None:
    queues = [Queue("work", database=dsn) for _ in range(20)]
    threads = [threading.Thread(target=queue.send, args=({},)) for queue in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.count("queue") == 20
    assert 1 <= connections(db) <= 4


@pytest.mark.conformance(only="direct", hosted=True)
def test_close_gives_up_the_connections_and_the_next_send_opens_them_again(
    db: psycopg.Connection[Any], engine: Engine
) -> None:
    queue = Queue("work")
    queue.send({})
    queue_worker.close()
    wait_until(lambda: connections(db) == 0)
    queue.send({})
    assert engine.count("queue") == 2


def test_the_pool_of_the_host_program_is_shared_and_left_as_it_was(
    db: psycopg.Connection[Any], engine: Engine, dsn: str
) -> None:
    with ConnectionPool(dsn, min_size=1, max_size=1, kwargs={"row_factory": dict_row}) as pool:
        queue = Queue("work", database=pool)
        assert [queue.send({}), *queue.send_batch([{}, {}])] == [1, 2, 3]
        (one,) = queue.fetch(1)
        one.complete()
        assert connections(db) == 0
        with pool.connection() as connection:
            assert connection.execute("select now() as at, '[1]'::jsonb as list").fetchone()["at"].tzinfo  # type: ignore[index]
            assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        assert pool.get_stats()["pool_size"] == 1


def test_a_refused_send_leaves_the_host_pool_usable(engine: Engine, dsn: str) -> None:
    with ConnectionPool(dsn, min_size=1, max_size=1) as pool:
        queue = Queue("work", database=pool)
        with pytest.raises(UsageError):
            queue.send({}, max_attempts=0)
        queue.send({})
        assert engine.count("queue") == 1


@pytest.mark.conformance(only="direct", hosted=True)
def test_a_forked_child_opens_connections_of_its_own(db: psycopg.Connection[Any], engine: Engine) -> None:
    queue = Queue("work")
    queue.send({"from": "parent"})
    gate, opened = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            queue.send({"from": "child"})
            os.close(opened)
            os.read(gate, 1)
            queue_worker.close()
        finally:
            os._exit(0)
    os.close(gate)
    try:
        wait_until(lambda: engine.count("queue") == 2)
        assert connections(db) == 2
    finally:
        os.close(opened)
        os.waitpid(pid, 0)
    queue.send({"from": "parent"})
    assert engine.rows("select message ->> 'from' from pgmq.q_QUEUE order by msg_id") == [
        ("parent",), ("child",), ("parent",),
    ]  # fmt: skip


def test_a_coroutine_sends_without_blocking_its_loop(engine: Engine) -> None:
    async def main() -> list[int]:
        return list(await asyncio.gather(*(Queue("work").asend({"n": n}) for n in range(5))))

    assert sorted(asyncio.run(main())) == [1, 2, 3, 4, 5]


# ------------------------------------------------------------------------------------------------------- refusals


def test_mistakes_are_one_line_of_their_own_kind(engine: Engine, empty_dsn: str) -> None:
    with pytest.raises(ConfigError, match="invalid queue name 'Bad Name'"):
        Queue("Bad Name")
    with pytest.raises(QueueNotFound, match='queue "nowhere" does not exist'):
        Queue("nowhere").send({})
    with pytest.raises(UsageError, match=r"payload is \d+ bytes, the limit is 262144"):
        Queue("work").send({"a": "x" * 300_000})
    with pytest.raises(UsageError, match=r"must be a URL or a psycopg_pool\.ConnectionPool, not builtins\.int"):
        Queue("work", database=5).send({})  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="run `queue-worker migrate`"):
        Queue("work", database=empty_dsn).send({})
    queue_worker.close()


def test_a_database_that_is_away_is_said_to_be(engine: Engine) -> None:
    with pytest.raises(TransportUnavailable):
        Queue("work", database="postgresql://postgres@127.0.0.1:1/postgres").send({})
