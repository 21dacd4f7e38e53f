"""Schedulers on a real database: each time fires once, whatever they, their clocks or their connections do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine

from queue_worker import App, events
from queue_worker.errors import TransportUnavailable
from queue_worker.schedule import Scheduler
from queue_worker.schedule_definition import Schedule
from queue_worker.transport import Rows
from queue_worker.transport.postgres import PostgresTransport
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.stages import Stage
from tests.worker.kit import app_of
from tests.worker.processes import Zygote

pytestmark = pytest.mark.conformance(hosted=True)

Meddle = Callable[[str, Mapping[str, Any]], None]


class Watched:
    """A transport that notes its calls; `before` and `after` each are where a test meddles."""

    def __init__(
        self, dsn: str, before: Meddle | None = None, after: Meddle | None = None, pooler: bool = False
    ) -> None:
        self._inner = PostgresTransport(lambda: dsn, pooler=pooler)
        self._before, self._after = before, after
        self.calls: list[str] = []

    def call(self, function: str, params: Mapping[str, Any]) -> Rows:
        self.calls.append(function.removeprefix("queue_worker."))
        if self._before:
            self._before(self.calls[-1], params)
        rows = self._inner.call(function, params)
        if self._after:
            self._after(self.calls[-1], params)
        return rows

    def abort(self) -> None:
        self._inner.abort()

    def close(self) -> None:
        self._inner.close()


@contextmanager
def scheduler(dsn: str, *schedules: Schedule, **meddling: Any) -> Iterator[tuple[Scheduler, Watched]]:
    transport = Watched(dsn, **meddling)
    try:
        yield Scheduler(transport, schedules), transport
    finally:
        transport.close()


@contextmanager
def turning(one: Scheduler) -> Iterator[None]:
    """Run a scheduler's thread while the block runs."""
    thread = threading.Thread(target=one.run)
    thread.start()
    try:
        yield
    finally:
        one.stop()
        thread.join(30)
        assert not thread.is_alive()


def add(engine: Engine, name: str = "s", cron: str = "* * * * *", **fields: Any) -> None:
    values = {"name": name, "queue": "work", "cron": cron, "payload": "{}", **fields}
    engine.rows(f"select queue_worker.schedule({', '.join(f'{one} => %s' for one in values)})", *values.values())


def down_for(engine: Engine, minutes: int) -> None:
    """As if no worker had run for so long, up to half a minute ago."""
    engine.rows(
        "update queue_worker_data.schedules set next_fire_at = date_trunc('minute', now()) - %s * interval '1 minute'",
        minutes,
    )


def sent(engine: Engine) -> list[datetime]:
    """The times that were sent for, in order of sending."""
    rows = engine.rows("select headers ->> 'scheduled_for' as at from pgmq.q_QUEUE order by msg_id")
    return [datetime.fromisoformat(one.at) for one in rows]


def row(engine: Engine, name: str = "s") -> Any:
    (found,) = engine.rows("select * from queue_worker.schedules where name = %s", name)
    return found


def test_a_new_schedule_gets_its_next_time_and_fires_when_it_has_come(engine: Engine, dsn: str) -> None:
    add(engine, cron="30 9 * * 1-5", timezone="Europe/Berlin")
    with scheduler(dsn) as (one, _):
        one.step()
        first = row(engine).next_fire_at
        assert first > datetime.now(UTC)
        assert sent(engine) == []
        due = first - timedelta(days=7)
        engine.rows("update queue_worker_data.schedules set next_fire_at = %s, misfire = 'all'", due)
        one.step()
        assert sent(engine)[0] == due
        assert row(engine).next_fire_at == first
        assert row(engine).last_fire_at == sent(engine)[-1]


def test_after_a_downtime_once_fires_the_latest_time_alone(engine: Engine, dsn: str) -> None:
    add(engine)
    down_for(engine, 500)
    with scheduler(dsn) as (one, _):
        one.step()
    (time,) = sent(engine)
    assert timedelta(0) <= engine.value("select clock_timestamp()") - time < timedelta(minutes=2)
    assert row(engine).next_fire_at == time + timedelta(minutes=1)


def test_after_a_downtime_all_fires_the_latest_up_to_its_limit_in_order(engine: Engine, dsn: str) -> None:
    add(engine, misfire="all")
    down_for(engine, 500)
    with scheduler(dsn) as (one, _):
        one.step()
    found = sent(engine)
    assert len(found) in (100, 101)  # a minute may begin meanwhile
    assert found == [found[0] + timedelta(minutes=n) for n in range(len(found))]
    assert engine.value("select clock_timestamp()") - found[-1] < timedelta(minutes=2)


def test_after_a_downtime_skip_fires_nothing_that_is_late(engine: Engine, dsn: str) -> None:
    late = engine.value("select date_trunc('minute', now()) - interval '10 minutes'").astimezone(UTC)
    add(engine, "late", f"{late.minute} {late.hour} * * *", misfire="skip")
    engine.rows("update queue_worker_data.schedules set next_fire_at = %s", late - timedelta(days=3))
    with scheduler(dsn) as (one, _):
        one.step()
        assert sent(engine) == []
        assert row(engine, "late").next_fire_at == late + timedelta(days=1)
        # What is due just now is not late.
        add(engine, misfire="skip")
        engine.rows("update queue_worker_data.schedules set next_fire_at = now() - interval '1 hour' where name = 's'")
        one.step()
    assert len(sent(engine)) == 1


def test_an_interval_is_counted_from_its_edit(engine: Engine, dsn: str) -> None:
    add(engine, cron="every 10 minutes")
    with scheduler(dsn) as (one, _):
        one.step()
        start = engine.value("select from_at from queue_worker_data.schedules")
        assert row(engine).next_fire_at == start + timedelta(minutes=10)
        engine.rows("update queue_worker_data.schedules set next_fire_at = from_at - interval '40 minutes'")
        engine.rows("update queue_worker_data.schedules set from_at = from_at - interval '1 hour', misfire = 'all'")
        one.step()
    assert sent(engine) == [start - timedelta(minutes=m) for m in (40, 30, 20, 10, 0)]


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_wrong_clock_of_the_worker_changes_nothing(engine: Engine, dsn: str, minutes: int) -> None:
    add(engine, "due")
    add(engine, "new", "0 * * * *")
    down_for(engine, 0)
    engine.rows("update queue_worker_data.schedules set next_fire_at = null where name = 'new'")
    now = engine.value("select clock_timestamp()")
    with time_machine.travel(datetime.now(UTC) + timedelta(minutes=minutes)), scheduler(dsn) as (one, _):
        one.step()
    assert len(sent(engine)) in (1, 2)
    assert sent(engine)[0] <= now
    assert now < row(engine, "due").next_fire_at <= now + timedelta(minutes=2)
    following = row(engine, "new").next_fire_at
    assert now < following <= now + timedelta(hours=1)


def test_an_edit_between_the_calculation_and_the_firing_is_not_fired_over(engine: Engine, dsn: str) -> None:
    add(engine)
    down_for(engine, 0)
    edited = []

    def edit(function: str, _params: Mapping[str, Any]) -> None:
        if function == "fire" and not edited:
            add(engine, cron="0 0 1 1 *")
            edited.append(True)

    with scheduler(dsn, before=edit) as (one, _):
        one.step()
    assert edited
    assert sent(engine) == []
    assert (row(engine).next_fire_at.month, row(engine).next_fire_at.day) == (1, 1)


def test_a_reply_that_is_lost_neither_loses_nor_repeats_the_message(engine: Engine, dsn: str) -> None:
    add(engine)
    down_for(engine, 0)
    lost = []

    def lose(function: str, _params: Mapping[str, Any]) -> None:
        if function == "fire" and not lost:
            lost.append(True)
            raise TransportUnavailable("the reply was lost")

    with scheduler(dsn, after=lose) as (one, _):
        with pytest.raises(TransportUnavailable):
            one.step()
        assert len(sent(engine)) == 1
        one.step()
    assert len(set(sent(engine))) == len(sent(engine))


def test_one_that_is_wrong_shows_its_error_and_the_others_go_on(engine: Engine, dsn: str) -> None:
    engine.rows("select queue_worker.create_queue('gone')")
    add(engine, "a-bad", "61 * * * *")
    add(engine, "b-gone", queue="gone")
    add(engine, "c-never", "0 0 1 1 *", timezone="Europe/Berlin")
    add(engine, "d-good")
    engine.rows("drop table pgmq.q_gone")
    engine.rows(
        "update queue_worker_data.schedules set next_fire_at = date_trunc('minute', now())"
        " where name in ('b-gone', 'd-good')"
    )
    with scheduler(dsn) as (one, transport), events.capture("schedule.error") as errors:
        one.step()
        assert len(sent(engine)) in (1, 2)
        assert row(engine, "a-bad").error == "'61 * * * *': minute '61' is not 0 to 59"
        assert row(engine, "b-gone").error == 'queue "gone" does not exist'
        assert [fields["schedule"] for _, fields in errors] == ["a-bad", "b-gone"]
        # They rest: the next look does not try them again.
        transport.calls.clear()
        one.step()
        assert "fail_schedule" not in transport.calls
        add(engine, "a-bad", "1 * * * *")
        one.step()
    assert row(engine, "a-bad").error is None
    assert row(engine, "a-bad").next_fire_at is not None


def test_looking_is_one_call_and_the_waits_are_long(engine: Engine, dsn: str) -> None:
    with scheduler(dsn) as (one, transport):
        assert one.step() == 60
        assert transport.calls == ["due_schedules"]
        add(engine, cron="0 0 1 1 *")
        one.step()
        transport.calls.clear()
        assert one.step() == 30
        assert transport.calls == ["due_schedules"]
        engine.rows("update queue_worker_data.schedules set next_fire_at = now() + interval '10 seconds'")
        assert 0 < one.step() < 10


def test_eight_schedulers_and_two_hundred_ticks_make_two_hundred_messages(engine: Engine, dsn: str) -> None:
    # Ten schedules of the past: nothing of theirs comes due while the test runs.
    for number in range(10):
        add(engine, f"s{number}", "0 0 1 1 *", misfire="all")
    engine.rows("update queue_worker_data.schedules set cron = 'every 1w', misfire_limit = 1000")
    engine.rows(
        "update queue_worker_data.schedules set from_at = date_trunc('second', now()) - interval '140 days 1 hour',"
        " next_fire_at = date_trunc('second', now()) - interval '140 days 1 hour' + interval '7 days'"
    )
    gate = threading.Barrier(8)

    def work() -> None:
        with scheduler(dsn) as (one, _):
            gate.wait()
            while one.step() <= 0.5:
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert engine.count("queue") == 200
    per_schedule = engine.rows(
        "select headers ->> 'schedule' as name, count(distinct headers ->> 'scheduled_for') as n from pgmq.q_work"
        " group by 1"
    )
    assert sorted((one.name, one.n) for one in per_schedule) == [(f"s{n}", 20) for n in range(10)]


def test_eight_worker_processes_and_two_hundred_ticks_make_two_hundred_messages(
    engine: Engine, dsn: str, zygote: Zygote, tmp_path: Path
) -> None:
    engine.rows("select queue_worker.create_queue('ticks')")
    processes = [zygote.start(dsn, tmp_path) for _ in range(8)]
    for process in processes:
        wait_until(lambda process=process: process.events("worker.ready"), 60, process.said)
    # One edit wakes them all.
    engine.rows("begin")
    for number in range(4):
        add(engine, f"s{number}", "every 1w", queue="ticks", misfire="all")
    engine.rows(
        "update queue_worker_data.schedules set from_at = from_at - interval '350 days 1 hour',"
        " next_fire_at = from_at - interval '343 days 1 hour'"
    )
    engine.rows("commit")
    wait_until(lambda: engine.value("select min(next_fire_at) > now() from queue_worker.schedules"), 60)
    for process in processes:
        process.kill()
    assert engine.value("select count(*) from pgmq.q_ticks") == 200
    assert engine.value("select count(*) from queue_worker_data.fires") == 200


def test_the_thread_survives_the_loss_of_its_connection(engine: Engine, dsn: str) -> None:
    add(engine, cron="every 1s")
    with scheduler(dsn) as (one, _), turning(one):
        wait_until(lambda: sent(engine), 20)
        engine.rows(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid() and application_name = 'queue_worker'"
        )
        count = len(sent(engine))
        wait_until(lambda: len(sent(engine)) > count, 20)


def test_a_worker_is_woken_by_an_edit_and_fires(engine: Engine, dsn: str, stage: Stage) -> None:
    app = app_of(lambda job: None)
    app.schedule("0 0 1 1 *", queue="work", name="rare", payload={"rare": True})
    with running(dsn, app):
        # By now it sleeps for half a minute.
        wait_until(lambda: engine.rows("select name from queue_worker.schedules where next_fire_at is not null"), 20)
        if stage.transport == "direct":
            wait_until(
                lambda: engine.rows(
                    "select pid from pg_stat_activity where query = 'listen \"queue_worker\"'"
                    " and datname = current_database()"
                ),
                20,
            )
        add(engine, cron="every 1s")
        wait_until(lambda: engine.count("archive") >= 2, 20)
    headers = engine.value("select headers from pgmq.a_work order by msg_id limit 1")
    assert headers["schedule"] == "s"


def test_behind_a_transaction_pooler_schedules_fire_too(engine: Engine, dsn: str) -> None:
    add(engine, cron="every 1s")
    with running(dsn, app_of(lambda job: None), pooler="yes"):
        wait_until(lambda: engine.count("archive") >= 2, 20)


@pytest.mark.parametrize("settings", [{"scheduler": False}, {"burst": True}])
def test_a_process_can_do_without_a_scheduler(engine: Engine, dsn: str, settings: dict[str, Any]) -> None:
    add(engine, cron="every 1s")
    down_for(engine, 1)
    engine.fill(3)
    with running(dsn, app_of(lambda job: None), **settings):
        wait_until(lambda: engine.count("archive") == 3, 20)
        assert not [one for one in threading.enumerate() if one.name == "scheduler"]
    assert engine.count("queue") == 0


def test_schedules_of_the_app_are_written_once_and_follow_the_code(engine: Engine, dsn: str) -> None:
    def declared(cron: str) -> list[Schedule]:
        app = App()
        app.schedule(cron, queue="work", payload={"a": 1}, name="daily", timezone="Europe/Berlin", max_attempts=2)
        app.schedule(queue="work", name="often", every=timedelta(minutes=5))
        app.schedule(queue="later", name="later", every=60)
        return list(app.schedules.values())

    with scheduler(dsn, *declared("0 9 * * *")) as (one, _), events.capture("schedule.error") as errors:
        one.step()
        assert [fields["schedule"] for _, fields in errors] == ["later"]
    seen = row(engine, "daily")
    assert (seen.cron, seen.payload, seen.timezone, seen.options) == (
        "0 9 * * *", {"a": 1}, "Europe/Berlin", {"max_attempts": 2},
    )  # fmt: skip
    assert row(engine, "often").cron == "every 300s"
    engine.rows("select queue_worker.create_queue('later')")
    with scheduler(dsn, *declared("0 9 * * *")) as (one, _):
        one.step()
        assert row(engine, "daily").updated_at == seen.updated_at
        assert row(engine, "later").cron == "every 60s"
    with scheduler(dsn, *declared("0 10 * * *")) as (one, _):
        one.step()
    assert row(engine, "daily").cron == "0 10 * * *"
