"""What a worker tidies up, by the settings of its queues."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from queue_worker.chores import Housekeeper
from queue_worker.config import QueueOptions
from queue_worker.transport.database import PostgresDatabase
from queue_worker.upkeep import queue_chores, shared_chores
from tests.sql.engine import Engine

pytestmark = pytest.mark.conformance


@pytest.fixture
def database(dsn: str) -> Iterator[PostgresDatabase]:
    opened = PostgresDatabase(lambda: dsn)
    yield opened
    opened.close()


def age(engine: Engine, days: int) -> None:
    """One archived message, one failure, one dead letter and one entry of the audit of that age."""
    past = f"now() - interval '{days} days'"
    engine.rows(
        f"insert into pgmq.a_work (msg_id, enqueued_at, archived_at, vt, message) values ({days}, now(), {past}, now(),"
        " '{}')"
    )
    engine.rows(
        "insert into queue_worker_data.failures (queue, msg_id, attempt, kind, error, failed_at)"
        f" values ('work', {days}, 1, 'failed', 'e', {past})"
    )
    engine.rows(
        "insert into queue_worker_data.dead_letters (queue, msg_id, attempts, reason, error, enqueued_at, dead_at)"
        f" values ('work', {days}, 1, 'r', 'e', now(), {past})"
    )
    engine.rows(f"insert into queue_worker_data.audit (action, queue, at) values ('x', 'work', {past})")


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (QueueOptions(), (1, 2, 3, 2)),
        (QueueOptions(archive_days=0, failure_days=10, dead_days=100), (0, 1, 2, 2)),
        (QueueOptions(archive_days=1000, failure_days=0, dead_days=0), (3, 3, 3, 2)),
    ],
)
def test_the_settings_say_how_long(
    engine: Engine, database: PostgresDatabase, options: QueueOptions, kept: tuple[int, ...]
) -> None:
    for days in (5, 20, 500):
        age(engine, days)
    chores = queue_chores("work", options) + shared_chores()
    Housekeeper(database.transport(), chores).work()
    tables = ("pgmq.a_work", "queue_worker_data.failures", "queue_worker_data.dead_letters", "queue_worker_data.audit")
    assert tuple(engine.value(f"select count(*) from {table}") for table in tables) == kept


def test_what_a_trigger_could_not_send_is_sent(engine: Engine, database: PostgresDatabase) -> None:
    engine.rows("insert into queue_worker_data.unsent (queue, payload, error) values ('work', '{\"a\": 1}', 'e')")
    Housekeeper(database.transport(), queue_chores("work", QueueOptions())).work()
    assert engine.value("select payload from queue_worker.messages('work')") == {"a": 1}
