"""The handler's rows and the ack commit together, or neither does."""

from __future__ import annotations

from typing import Any

import pytest

from queue_worker import Job, events
from queue_worker.errors import LeaseLost
from queue_worker.processor import Handler
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.worker.kit import Door, app_of


def write(job: Job[dict[str, Any]]) -> None:
    with job.transaction() as transaction:
        transaction.execute("insert into effects values (%s)", [job.msg_id])


def write_at(door: Door) -> Handler:
    """Return a handler that waits at `door` with its row written and its transaction open."""

    def handle(job: Job[dict[str, Any]]) -> None:
        with job.transaction() as transaction:
            transaction.execute("insert into effects values (%s)", [job.msg_id])
            door.wait()

    return handle


def written(engine: Engine) -> list[int]:
    return [row[0] for row in engine.rows("select key from effects order by key")]


def failures(engine: Engine) -> int:
    return int(engine.value("select count(*) from queue_worker.failures"))


def test_rows_and_ack_become_visible_in_the_same_moment(dsn: str, effects: Engine) -> None:
    door = Door()
    msg_id = effects.send({})
    with events.capture("message.done") as done, running(dsn, app_of(write_at(door))):
        door.reached()
        assert (written(effects), effects.places(msg_id)) == ([], ["queue"])
        door.open()
        wait_until(lambda: done)
    assert (written(effects), effects.places(msg_id)) == ([msg_id], ["archive"])
    # One settlement: the loop has not acked it a second time.
    assert len(done) == 1


@pytest.mark.parametrize("on_success", ["archive", "delete"])
def test_many_transactions_at_once_each_count_once(dsn: str, effects: Engine, on_success: str) -> None:
    effects.fill(60)
    with running(dsn, app_of(write, concurrency=8, batch_size=30, on_success=on_success)):
        wait_until(lambda: effects.count("queue") == 0, 20)
    assert written(effects) == list(range(1, 61))
    assert effects.count("archive") == (60 if on_success == "archive" else 0)


def test_an_exception_rolls_both_back(dsn: str, effects: Engine) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        with job.transaction() as transaction:
            transaction.execute("insert into effects values (%s)", [job.msg_id])
            if job.attempt == 1:
                raise ValueError("half way")

    msg_id = effects.send({})
    with events.capture("message.retried") as retried, running(dsn, app_of(handle, retry=(0,))):
        wait_until(lambda: effects.count("archive") == 1)
    assert len(retried) == 1
    assert written(effects) == [msg_id]


def test_an_error_of_the_handlers_own_sql_costs_an_attempt(dsn: str, effects: Engine) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        with job.transaction() as transaction:
            transaction.execute("insert into effects values (null)")

    effects.send({})
    with running(dsn, app_of(handle, max_attempts=1)):
        wait_until(lambda: effects.count("dead") == 1)
    assert "NotNullViolation" in effects.value("select error from queue_worker.dead_letters")
    assert written(effects) == []


def test_an_error_after_the_commit_changes_nothing(dsn: str, effects: Engine) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        write(job)
        raise ValueError("too late")

    msg_id = effects.send({})
    with events.capture("message.late_error") as late, running(dsn, app_of(handle)):
        wait_until(lambda: late)
    assert (written(effects), effects.places(msg_id)) == ([msg_id], ["archive"])
    assert failures(effects) == 0


def test_a_lease_lost_before_the_transaction_stops_it_before_any_write(dsn: str, effects: Engine) -> None:
    door, seen = Door(), []

    def handle(job: Job[dict[str, Any]]) -> None:
        door.wait()
        try:
            with job.transaction():
                seen.append("inside")
        except LeaseLost as error:
            seen.append(str(error))
            raise

    msg_id = effects.send({})
    with running(dsn, app_of(handle, lease=600)):
        door.reached()
        effects.age()
        new = effects.take_one(suspects=1)
        door.open()
        wait_until(lambda: seen)
    assert seen == [f"message {msg_id} of queue 'work' belongs to another worker"]
    assert effects.state(msg_id).read_ct == new[1]
    assert effects.settle(done=[new]) == {}
    assert failures(effects) == 0


def test_a_message_lost_during_the_transaction_rolls_it_back(dsn: str, effects: Engine) -> None:
    """The row is locked, so only a hand inside the transaction itself can take the message away."""
    tried = []

    def handle(job: Job[dict[str, Any]]) -> None:
        with job.transaction() as transaction:
            transaction.execute("insert into effects values (%s)", [job.msg_id])
            if not tried:
                tried.append(1)
                transaction.execute("update pgmq.q_work set read_ct = read_ct + 1 where msg_id = %s", [job.msg_id])

    msg_id = effects.send({})
    with events.capture("message.released") as released, running(dsn, app_of(handle)):
        wait_until(lambda: released)
        assert (written(effects), failures(effects)) == ([], 0)
        effects.age()
        wait_until(lambda: effects.count("archive") == 1)
    assert written(effects) == [msg_id]


def test_nobody_claims_a_message_whose_transaction_outlives_its_lease(dsn: str, effects: Engine) -> None:
    door = Door()
    msg_id = effects.send({})
    with running(dsn, app_of(write_at(door), lease=1)):
        door.reached()
        wait_until(lambda: effects.state(msg_id).visible)  # the keeper passes over the locked row
        assert effects.claim(suspects=2) == []
        door.open()
        wait_until(lambda: effects.count("archive") == 1)
    assert written(effects) == [msg_id]


def test_an_archive_that_is_gone_rolls_the_handlers_rows_back_and_says_why(dsn: str, effects: Engine) -> None:
    effects.send({})
    effects.rows("alter table pgmq.a_work rename to a_elsewhere")
    with running(dsn, app_of(write, max_attempts=1)):
        wait_until(lambda: effects.count("dead") == 1)
    assert "could not be stored" in effects.value("select error from queue_worker.dead_letters")
    assert written(effects) == []


def test_a_transaction_uses_a_connection_of_a_small_pool(dsn: str, effects: Engine) -> None:
    door = Door()

    def handle(job: Job[dict[str, Any]]) -> None:
        with job.transaction() as transaction:
            pids.add(transaction.execute("select pg_backend_pid()").fetchone()[0])
            if len(door.inside) < 2:
                door.wait()

    pids: set[int] = set()
    effects.fill(12)
    with running(dsn, app_of(handle, concurrency=6, batch_size=12), transaction_pool_size=2):
        door.reached(2)
        door.open()
        wait_until(lambda: effects.count("archive") == 12, 20)
    assert len(pids) <= 2
