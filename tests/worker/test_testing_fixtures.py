"""The pytest plugin for users: a real worker that drains a real queue inside a test."""

from __future__ import annotations

from typing import Any

import pytest

from queue_worker import App, Job
from queue_worker.errors import ConfigError, UsageError
from queue_worker.testing.database import QueueDatabase
from tests.worker.kit import Door, app_of

pytest_plugins = ["queue_worker.testing.fixtures"]


def test_each_run_is_told_and_later_retries_stay(queue_db: QueueDatabase) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        if job.payload["n"] == 2:
            raise ValueError("odd")

    ids = [queue_db.send("work", {"n": n}) for n in (1, 2)]
    ended = queue_db.work(app_of(handle))
    assert sorted((one.queue, one.msg_id, one.outcome, one.attempt) for one in ended) == [
        ("work", ids[0], "done", 1),
        ("work", ids[1], "retried", 1),
    ]
    assert [one.error.splitlines()[0] for one in ended if one.outcome == "retried"] == ["ValueError: odd"]
    assert queue_db.work(app_of(handle)) == []
    (left,) = queue_db.call("queue_worker.messages", queue="work")
    assert (left["msg_id"], left["state"]) == (ids[1], "delayed")


def test_retries_can_run_at_once_and_the_first_error_is_raised(queue_db: QueueDatabase) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        raise KeyError(job.attempt)

    app, told = app_of(handle, retry=[500], max_attempts=3), []
    app.on_error(lambda job, error: told.append(error))
    queue_db.send("work", {})
    with pytest.raises(KeyError) as caught:
        queue_db.work(app, raising=True, retry=0)
    assert caught.value.args == (1,)
    # The app's own callbacks are asked, and the app itself is as it was.
    assert [error.args for error in told] == [(1,), (2,), (3,)]
    assert len(app.error_callbacks) == 1
    assert app.processors["work"].error_callbacks is app.error_callbacks


def test_a_panic_is_raised_as_what_it_was(queue_db: QueueDatabase) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        raise SystemExit(3)

    queue_db.send("work", {})
    with pytest.raises(SystemExit):
        queue_db.work(app_of(handle), raising=True)


def test_only_the_named_queues_are_worked_on(queue_db: QueueDatabase) -> None:
    app = app_of(lambda job: None, "one", "two")
    queue_db.send("one", {})
    queue_db.send("two", {})
    assert [run.queue for run in queue_db.work(app, "one")] == ["one"]
    assert [run.queue for run in queue_db.work(app)] == ["two"]


def test_each_test_has_a_fresh_database(queue_db: QueueDatabase) -> None:
    assert queue_db.send("fresh", {}) == 1


def test_and_so_has_the_next(queue_db: QueueDatabase) -> None:
    assert queue_db.send("fresh", {}) == 1


def test_a_handler_that_does_not_end_fails_the_test(queue_db: QueueDatabase) -> None:
    door = Door()
    queue_db.send("work", {})
    with pytest.raises(AssertionError, match="were not empty after 1 s"):
        queue_db.work(app_of(lambda job: door.wait()), seconds=1, grace_seconds=0)
    door.open()


def test_mistakes_are_told(queue_db: QueueDatabase) -> None:
    with pytest.raises(UsageError, match="no processors"):
        queue_db.work(App(builtins=False))
    with pytest.raises(ConfigError, match="concurrency"):
        queue_db.work(app_of(lambda job: None), concurrency=0)
