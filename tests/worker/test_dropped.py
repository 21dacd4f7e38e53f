"""Queues that are dropped, renamed or emptied while a worker serves them and another one."""

from __future__ import annotations

from typing import Any

import pytest

from queue_worker import events
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.worker.kit import Door, app_of

pytestmark = pytest.mark.conformance


def told(heard: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, str]]:
    """Which queues were reported as missing, or back."""
    return [(name, fields["queue"]) for name, fields in heard if name in ("queue.missing", "queue.back")]


def test_a_queue_dropped_under_load_degrades_alone_and_recovers(dsn: str, engine: Engine) -> None:
    other = Engine(engine.connection, "other").create()
    engine.fill(3000)
    other.fill(300)
    with events.capture() as heard, running(dsn, app_of(lambda job: None, "work", "other")):
        wait_until(lambda: engine.count("archive") > 20)
        engine.rows("select queue_worker.drop_queue('work')")
        wait_until(lambda: told(heard))
        other.fill(300)
        wait_until(lambda: other.count("archive") == 600, 30)
        engine.create()
        engine.fill(5)
        wait_until(lambda: engine.count("archive") == 5)
        assert told(heard) == [("queue.missing", "work"), ("queue.back", "work")]
    assert engine.value("select count(*) from queue_worker.failures where queue = 'other'") == 0
    assert engine.count("dead") == 0


def test_a_renamed_table_is_a_missing_queue_until_it_has_its_name_again(dsn: str, engine: Engine) -> None:
    other = Engine(engine.connection, "other").create()
    with events.capture() as heard, running(dsn, app_of(lambda job: None, "work", "other")):
        engine.send()
        wait_until(lambda: engine.count("archive") == 1)
        engine.rows("alter table pgmq.q_work rename to q_moved")
        engine.rows("insert into pgmq.q_moved (vt, message) values (now(), '{}')")
        wait_until(lambda: told(heard))
        other.send()
        wait_until(lambda: other.count("archive") == 1)
        engine.rows("alter table pgmq.q_moved rename to q_work")
        wait_until(lambda: engine.count("archive") == 2)
        wait_until(lambda: told(heard) == [("queue.missing", "work"), ("queue.back", "work")])


def test_a_purge_under_load_leaves_nothing_of_what_ran(dsn: str, engine: Engine) -> None:
    door = Door()
    engine.fill(20)
    app = app_of(lambda job: door.wait(), concurrency=3)
    with events.capture("message.lease_lost") as lost, running(dsn, app):
        door.reached(3)
        assert engine.value("select queue_worker.purge('work')") == 20
        door.open()
        wait_until(lambda: len(lost) >= 3)
        engine.send()
        wait_until(lambda: engine.count("archive") == 1)
    assert (engine.count("queue"), engine.count("dead")) == (0, 0)


def test_a_cancelled_message_that_runs_ends_as_cancelled(dsn: str, engine: Engine) -> None:
    door = Door()
    msg_id = engine.send()
    with running(dsn, app_of(lambda job: door.wait(), max_attempts=1)):
        door.reached()
        assert engine.value("select queue_worker.cancel('work', %s)", msg_id)
        door.open()
        neighbour = engine.send()
        wait_until(lambda: engine.places(neighbour) == ["archive"])
    assert engine.value("select state from queue_worker.message('work', %s)", msg_id) == "cancelled"
    assert engine.count("dead") == 0
