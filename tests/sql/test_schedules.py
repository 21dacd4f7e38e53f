"""Schedules in SQL: edited, fired once, and never lost between the tick and the message."""

from __future__ import annotations

import json
import threading
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from tests.sql.engine import Engine


def add(engine: Engine, name: str = "s", **fields: Any) -> None:
    """Make or change a schedule of the queue `work`."""
    values = {"name": name, "queue": "work", "cron": "* * * * *", "payload": json.dumps({"n": 1}), **fields}
    names = ", ".join(f"{one} => %s" for one in values)
    engine.rows(f"select queue_worker.schedule({names})", *values.values())


def row(engine: Engine, name: str = "s") -> Any:
    (found,) = engine.rows("select * from queue_worker_data.schedules where name = %s", name)
    return found


def fire(engine: Engine, seen: datetime | None, at: datetime | None, following: datetime, **fields: Any) -> Any:
    """Fire as a scheduler does that has seen the row as it is now, but for `fields`."""
    version = fields.get("version", row(engine).version)
    (answer,) = engine.rows("select * from queue_worker.fire('s', %s, %s, %s, %s)", version, seen, at, following)
    return answer


def due(engine: Engine) -> list[Any]:
    return engine.rows("select * from queue_worker.due_schedules()")


def planned(engine: Engine, minutes: int = 1) -> datetime:
    """A schedule `s` whose next time has come so many minutes ago; returns that time."""
    add(engine)
    at: datetime = engine.value(
        "update queue_worker_data.schedules set next_fire_at = date_trunc('minute', now()) - %s * interval '1 minute'"
        " returning next_fire_at",
        minutes,
    )
    return at


def actions(engine: Engine) -> list[str]:
    return [one.action for one in engine.rows("select action from queue_worker.audit order by audit_id")]


def test_fire_writes_the_row_the_message_and_the_next_time_together(engine: Engine) -> None:
    at = planned(engine)
    following = at + timedelta(minutes=5)
    answer = fire(engine, at, at, following)
    assert (answer.outcome, answer.queue) == ("sent", "work")
    (message,) = engine.rows("select msg_id, message, headers from pgmq.q_work")
    assert message.msg_id == answer.msg_id
    assert message.message == {"n": 1}
    assert set(message.headers) == {"schedule", "scheduled_for"}
    assert message.headers["schedule"] == "s"
    assert datetime.fromisoformat(message.headers["scheduled_for"]) == at
    assert message.headers["scheduled_for"].endswith("Z")
    seen = row(engine)
    assert (seen.next_fire_at, seen.last_fire_at, seen.last_msg_id, seen.error) == (following, at, answer.msg_id, None)
    (fired,) = engine.rows("select schedule, fire_at, queue, msg_id from queue_worker_data.fires")
    assert fired == ("s", at, "work", answer.msg_id)


def test_nothing_is_kept_of_a_fire_that_did_not_commit(engine: Engine, dsn: str) -> None:
    at = planned(engine)
    with psycopg.connect(dsn) as other:
        other.execute("select queue_worker.fire('s', %s, %s, %s, %s)", [row(engine).version, at, at, at + timedelta(1)])
        other.rollback()
    assert engine.count("queue") == 0
    assert row(engine).next_fire_at == at
    assert fire(engine, at, at, at + timedelta(1)).outcome == "sent"


def test_a_time_that_was_fired_is_not_fired_again_even_if_it_is_planned_again(engine: Engine) -> None:
    at = planned(engine)
    assert fire(engine, at, at, at + timedelta(1)).outcome == "sent"
    engine.rows("update queue_worker_data.schedules set next_fire_at = %s", at)
    assert fire(engine, at, at, at + timedelta(1)).outcome == "repeated"
    assert engine.count("queue") == 1
    # It has moved on, and it is not stuck on that time.
    assert row(engine).next_fire_at == at + timedelta(1)


def test_what_was_computed_before_an_edit_does_not_fire(engine: Engine) -> None:
    at, old = planned(engine), row(engine).version
    add(engine, cron="0 9 * * *")
    # Even where the new next time happens to be the one that was seen.
    engine.rows("update queue_worker_data.schedules set next_fire_at = %s", at)
    assert fire(engine, at, at, at + timedelta(1), version=old).outcome == "stale"
    assert fire(engine, at + timedelta(1), at, at + timedelta(2)).outcome == "stale"
    engine.rows("select queue_worker.unschedule('s')")
    add(engine)
    engine.rows("update queue_worker_data.schedules set next_fire_at = %s", at)
    assert fire(engine, at, at, at + timedelta(1), version=old).outcome == "stale"
    engine.rows("select queue_worker.pause_schedule('s')")
    assert fire(engine, None, at, at + timedelta(1)).outcome == "stale"
    assert engine.count("queue") == 0


def test_an_edit_of_the_payload_keeps_the_times(engine: Engine) -> None:
    at = planned(engine)
    before = row(engine)
    add(engine, payload='{"n": 2}', misfire="all", options='{"max_attempts": 3}')
    after = row(engine)
    assert (after.version, after.next_fire_at, after.from_at) == (before.version, at, before.from_at)
    fire(engine, at, at, at + timedelta(1))
    (message,) = engine.rows("select message, headers -> 'max_attempts' as attempts from pgmq.q_work")
    assert message == ({"n": 2}, 3)


def test_the_same_schedule_again_changes_nothing(engine: Engine) -> None:
    add(engine)
    before = row(engine)
    add(engine)
    assert row(engine) == before
    assert actions(engine) == ["schedule"]


def test_a_time_that_has_not_come_does_not_fire(engine: Engine) -> None:
    # So it is for a scheduler that computed before the database's clock was put back.
    at = planned(engine, minutes=-3)
    assert fire(engine, at, at, at + timedelta(1)).outcome == "early"
    assert engine.count("queue") == 0
    assert row(engine).next_fire_at == at


def test_a_missing_queue_is_an_error_on_the_row_and_the_time_is_kept(engine: Engine) -> None:
    at = planned(engine)
    engine.rows("alter table pgmq.q_work rename to q_away")
    answer = fire(engine, at, at, at + timedelta(1))
    assert (answer.outcome, answer.msg_id) == ("error", None)
    (seen,) = engine.rows("select error, next_fire_at from queue_worker.schedules")
    assert seen == ('queue "work" does not exist', at)
    # It rests, so that no scheduler turns in a circle.
    rest = due(engine)
    assert [one.name for one in rest] == [None]
    assert 0 < rest[0].wait_seconds <= 30
    engine.rows("update queue_worker_data.schedules set retry_at = now()")
    assert [one.name for one in due(engine)] == ["s", None]
    engine.rows("alter table pgmq.q_away rename to q_work")
    assert fire(engine, at, at, at + timedelta(1)).outcome == "sent"
    assert row(engine).error is None


def test_an_editor_with_an_open_transaction_holds_up_nobody(engine: Engine, dsn: str) -> None:
    at = planned(engine)
    with psycopg.connect(dsn) as editor:
        editor.execute("update queue_worker_data.schedules set payload = '{}' where name = 's'")
        engine.rows("set statement_timeout = '5s'")
        assert fire(engine, at, at, at + timedelta(1)).outcome == "locked"
        assert engine.value("select queue_worker.fail_schedule('s', %s, 'x')", row(engine).version) is False


def test_eight_at_once_fire_a_time_once(engine: Engine, dsn: str) -> None:
    at = planned(engine)
    version, outcomes, gate = row(engine).version, [], threading.Barrier(8)

    def one() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            gate.wait()
            for _ in range(5):
                answer = connection.execute(
                    "select outcome from queue_worker.fire('s', %s, %s, %s, %s)", [version, at, at, at + timedelta(1)]
                ).fetchone()
                assert answer is not None
                outcomes.append(answer[0])

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("sent") == 1
    assert set(outcomes) <= {"sent", "stale", "locked"}
    assert engine.count("queue") == 1


def test_due_gives_what_is_due_or_not_computed_and_the_time_until_the_rest(engine: Engine) -> None:
    (nothing,) = due(engine)
    assert (nothing.name, nothing.wait_seconds) == (None, None)
    for name in ("new", "late", "later", "paused"):
        add(engine, name)
    engine.rows("select queue_worker.pause_schedule('paused')")
    engine.rows(
        "update queue_worker_data.schedules set next_fire_at = now() + case name when 'late' then interval '-1 hour'"
        " else interval '50 seconds' end where name in ('late', 'later')"
    )
    found = due(engine)
    assert [one.name for one in found] == ["new", "late", None]
    assert [one.now for one in found] == [found[0].now] * 3
    assert found[-1].wait_seconds == 0
    engine.rows("delete from queue_worker_data.schedules where name in ('new', 'late')")
    (rest,) = due(engine)
    assert 0 < rest.wait_seconds <= 50


def test_pause_and_resume_do_not_make_up_for_the_time_between(engine: Engine) -> None:
    planned(engine, minutes=90)
    before = row(engine).from_at
    engine.rows("update queue_worker_data.schedules set from_at = from_at - interval '1 day'")
    engine.rows("select queue_worker.pause_schedule('s')")
    assert [one.name for one in due(engine)] == [None]
    engine.rows("select queue_worker.resume_schedule('s')")
    engine.rows("select queue_worker.resume_schedule('s')")
    seen = row(engine)
    assert (seen.enabled, seen.next_fire_at) == (True, None)
    assert seen.from_at >= before
    assert actions(engine) == ["schedule", "pause_schedule", "resume_schedule"]
    # A worker that starts with the schedule in its code does not end a person's pause.
    engine.rows("select queue_worker.pause_schedule('s')")
    add(engine, payload='{"n": 5}')
    assert row(engine).enabled is False


def test_run_sends_now_and_leaves_the_times_alone(engine: Engine) -> None:
    at = planned(engine)
    engine.rows("select queue_worker.pause_schedule('s')")
    before = row(engine)
    sent = engine.value("select queue_worker.run_schedule('s')")
    (message,) = engine.rows("select msg_id, message, headers ->> 'schedule' as name from pgmq.q_work")
    assert message == (sent, {"n": 1}, "s")
    assert row(engine) == before
    assert at is not None
    assert actions(engine)[-1] == "run_schedule"


def test_unschedule_removes_it_and_says_whether_there_was_one(engine: Engine) -> None:
    add(engine)
    assert engine.value("select queue_worker.unschedule('s')") is True
    assert engine.value("select queue_worker.unschedule('s')") is False
    assert due(engine)[0].name is None
    assert actions(engine) == ["schedule", "unschedule"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "a b"}, "schedule name 'a b' is not allowed"),
        ({"name": ""}, "schedule name '' is not allowed"),
        ({"name": None}, "schedule name"),
        ({"timezone": "Mars/Olympus"}, "time zone 'Mars/Olympus' is not known"),
        ({"timezone": None}, "time zone"),
        ({"misfire": "never"}, "misfire must be skip, once or all, not 'never'"),
        ({"misfire_limit": 0}, "misfire_limit must be 1 to 1000, not 0"),
        ({"misfire_limit": 1001}, "misfire_limit must be 1 to 1000, not 1001"),
        ({"cron": ""}, "cron must be"),
        ({"payload": "[1]"}, "payload must be a JSON object, not array"),
        ({"payload": None}, "payload must be a JSON object, not null"),
        ({"payload": json.dumps({"a": "x" * 300_000})}, "schedule 's': payload is 300"),
        ({"options": "[]"}, "options must be a JSON object"),
        ({"options": '{"payload": {}}'}, "options must be a JSON object"),
        ({"options": '{"prio": 5}'}, "schedule 's': unknown option \"prio\""),
        ({"options": '{"max_attempts": 0}'}, "schedule 's': max_attempts must be 1 to 1000"),
        ({"options": '{"max_attempts": "x"}'}, "schedule 's': invalid input syntax"),
        ({"options": '{"headers": [1]}'}, "schedule 's': headers must be a JSON object"),
        ({"queue": "nowhere"}, 'queue "nowhere" does not exist'),
        ({"queue": "No Queue"}, "queue name 'No Queue' is not allowed"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(engine: Engine, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        add(engine, **fields)
    assert str(refused.value.diag.message_primary).startswith(words)
    assert "\n" not in str(refused.value.diag.message_primary)
    assert engine.value("select count(*) from queue_worker_data.schedules") == 0
    assert engine.count("queue") == 0
    assert engine.value("select last_value from pgmq.q_work_msg_id_seq") < 3


def test_a_plain_update_is_checked_and_makes_a_new_version(engine: Engine) -> None:
    planned(engine)
    before = row(engine).version
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="time zone"):
        engine.rows("update queue_worker.schedules set timezone = 'Nowhere'")
    engine.rows("update queue_worker.schedules set cron = '0 9 * * *', timezone = 'Europe/Berlin' where name = 's'")
    after = row(engine)
    assert after.version > before
    assert after.next_fire_at is None


def test_an_edit_clears_the_error_and_notifies(engine: Engine, dsn: str) -> None:
    add(engine)
    version = row(engine).version
    assert engine.value("select queue_worker.fail_schedule('s', %s, 'bad cron')", version - 1) is False
    assert engine.value("select queue_worker.fail_schedule('s', %s, 'bad cron')", version) is True
    assert engine.value("select error from queue_worker.schedules") == "bad cron"
    assert [one.name for one in due(engine)] == [None]
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute("listen queue_worker")
        add(engine, cron="0 9 * * *")
        heard = [one.payload for one in listener.notifies(timeout=10, stop_after=1)]
    assert heard == ["schedules changed"]
    assert engine.value("select error from queue_worker.schedules") is None
    assert [one.name for one in due(engine)] == ["s", None]


@pytest.mark.parametrize("function", ["pause_schedule", "resume_schedule", "run_schedule"])
def test_an_unknown_schedule_is_named(engine: Engine, function: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="schedule 'nothing' does not exist"):
        engine.rows(f"select queue_worker.{function}('nothing')")


def test_prune_deletes_old_fires_in_small_steps(engine: Engine) -> None:
    engine.rows(
        "insert into queue_worker_data.fires (schedule, fire_at, queue, fired_at)"
        " select 's', now() - d * interval '1 day', 'work', now() - d * interval '1 day' from generate_series(30, 40) d"
    )
    assert [engine.value("select queue_worker_data.prune_fires(3)") for _ in range(3)] == [3, 3, 0]
    assert engine.value("select count(*) from queue_worker_data.fires") == 5


def test_list_shows_the_view(engine: Engine) -> None:
    add(engine, "b", options='{"max_attempts": 2}')
    add(engine, "a", timezone="Asia/Seoul")
    found = engine.rows("select * from queue_worker.list_schedules()")
    assert [(one.name, one.timezone, one.options) for one in found] == [
        ("a", "Asia/Seoul", {}), ("b", "UTC", {"max_attempts": 2}),
    ]  # fmt: skip
    assert found[0]._fields[:13] == (
        "name", "queue", "cron", "timezone", "misfire", "payload", "options", "enabled", "last_fire_at", "next_fire_at",
        "last_msg_id", "error", "updated_at",
    )  # fmt: skip
