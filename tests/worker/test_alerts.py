"""Alerts of real workers: told once by one of them, by log, webhook and mail, whoever dies and whatever stalls."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker import events
from queue_worker.alerts import Alerts
from queue_worker.config import load_settings
from queue_worker.errors import TransportUnavailable
from queue_worker.transport.postgres import PostgresTransport
from tests.helpers import running, wait_until
from tests.hooks import Hooks
from tests.sql.engine import Engine
from tests.stages import settings_of
from tests.worker.kit import app_of
from tests.worker.processes import Zygote

sys.path.append(str(Path(__file__).parents[1] / "processors"))

from smtp_server import SmtpServer

EVERY = {"alert_check_seconds": 0.1, "alert_hold_seconds": 0, "alert_webhook_allow_private": True}


def bodies(hooks: Hooks) -> list[tuple[str, str, str]]:
    return [(one.body["event"], one.body["name"], one.body["queue"]) for one in hooks.got]


def die(engine: Engine) -> None:
    engine.send()
    engine.settle([], [(engine.take_one(), "dead", 0, "rejected", "no")])


def checker(dsn: str, **settings: Any) -> tuple[Alerts, PostgresTransport]:
    transport = PostgresTransport(lambda: dsn)
    settings = {**settings_of(dsn), **EVERY, "alert_check_seconds": 0, **settings}
    return Alerts(transport, load_settings(settings)), transport


def expire(engine: Engine) -> None:
    engine.rows("update queue_worker_data.alert_notices set due_at = now()")


def test_three_processes_tell_each_alert_once_and_its_end_once(
    engine: Engine, dsn: str, tmp_path: Path, zygote: Zygote
) -> None:
    for queue in ("idle", "sick"):
        Engine(engine.connection, queue).create()
    with Hooks() as hooks:
        settings = {**EVERY, "alert_webhook": hooks.url, "alert_backlog": 5}
        fleet = [zygote.start(dsn, tmp_path, ["work"], **settings) for _ in range(3)]
        for one in fleet:
            wait_until(lambda one=one: one.events("worker.ready"), 30, one.said)
        Engine(engine.connection, "idle").fill(8)
        die(Engine(engine.connection, "sick"))
        fired = [("alert.fired", "backlog", "idle"), ("alert.fired", "dead", "sick")]
        wait_until(lambda: sorted(bodies(hooks)) == fired, 30, lambda: str(bodies(hooks)))
        engine.rows("select queue_worker.purge('idle')")
        engine.rows("select queue_worker.discard('sick')")
        both = [("alert.cleared", "backlog", "idle"), ("alert.cleared", "dead", "sick"), *fired]
        wait_until(lambda: sorted(bodies(hooks)) == both, 30, lambda: str(bodies(hooks)))
        wait_until(
            lambda: engine.value("select count(*) from queue_worker_data.alert_notices where delivered_at is null") == 0
        )
        for name in ("alert.fired", "alert.cleared"):
            assert sorted(one["queue"] for process in fleet for one in process.events(name)) == ["idle", "sick"]
        assert engine.value("select max(attempts) from queue_worker_data.alert_notices") == 1
        for one in fleet:
            assert not one.events("alert.undelivered") + one.events("alert.error")
            assert "s3cret" not in one.said()


def test_what_a_dead_process_had_claimed_another_one_tells(engine: Engine, dsn: str) -> None:
    die(engine)
    # As a process that dies between its commit and the POST.
    engine.rows("select * from queue_worker.check_alerts('{\"dead\": 1}')")
    with Hooks() as hooks:
        one, transport = checker(dsn, alert_webhook=hooks.url)
        one.step()
        assert hooks.got == []
        expire(engine)
        one.step()
        one.step()
        assert bodies(hooks) == [("alert.fired", "dead", "work")]
        transport.close()


def test_a_channel_that_fails_is_tried_again_and_the_others_are_not(engine: Engine, dsn: str) -> None:
    die(engine)
    with Hooks() as hooks, SmtpServer() as smtp, events.capture() as seen:
        hooks.answers = [500, 503]
        mail = {"smtp_host": smtp.host, "smtp_port": smtp.port, "smtp_from_email": "shop@example.org"}
        one, transport = checker(dsn, alert_webhook=hooks.url, alert_email_to="ops@example.com", **mail)
        for _ in range(4):
            one.step()
            expire(engine)
        transport.close()
        assert [one["error"] for name, one in seen if name == "alert.undelivered"] == [
            "QUEUE_WORKER_ALERT_WEBHOOK: it answered 500", "QUEUE_WORKER_ALERT_WEBHOOK: it answered 503",
        ]  # fmt: skip
        assert len(hooks.got) == 3
        assert smtp.count("ops@example.com") == 1
        assert [name for name, _ in seen].count("alert.fired") == 1
        assert "s3cret" not in str(seen)


def test_a_webhook_into_our_own_network_is_refused_and_ends_nothing(engine: Engine, dsn: str) -> None:
    die(engine)
    with Hooks() as hooks, events.capture("alert.undelivered") as seen:
        url = f"https://localhost:{hooks.port}/s3cret"
        one, transport = checker(dsn, alert_webhook=url, alert_webhook_allow_private=False)
        for _ in range(7):
            one.step()
            expire(engine)
        transport.close()
        assert hooks.connections == 0
        assert [one["again"] for _, one in seen] == ["later"] * 4 + ["no more"]
        assert "s3cret" not in str(seen)


@pytest.mark.conformance(hosted=True)
def test_the_mail_arrives_while_queue_email_stands_still(
    engine: Engine, dsn: str, db: psycopg.Connection[Any], tmp_path: Path
) -> None:
    mails = Engine(db, "email").create()
    mails.send({"to": "bob@example.com"})
    mails.rows("update pgmq.q_email set vt = now() - interval '1 hour'")
    with SmtpServer() as smtp:
        mail = {"smtp_host": smtp.host, "smtp_port": smtp.port, "smtp_from_email": "shop@example.org"}
        with running(dsn, app_of(lambda job: None), alert_email_to="ops@example.com,Ops2@example.com", **EVERY, **mail):
            wait_until(lambda: len(smtp.received) == 2, 30)
        assert smtp.count("ops@example.com") == smtp.count("Ops2@example.com") == 2
        subjects = sorted(one.message["Subject"] for one in smtp.received)
        assert subjects[0].startswith("Alert: oldest of queue email: a message waits for 36")
        assert subjects[1].startswith("Alert: stalled of queue email: a message is due since 36")
        text = smtp.received[0].message.get_content()
        assert "queue: email" in text
        assert "event: alert.fired" in text
    assert mails.value("select count(*) from pgmq.q_email") == 1


def test_without_a_mail_server_alerts_become_files(engine: Engine, dsn: str, tmp_path: Path) -> None:
    die(engine)
    one, transport = checker(dsn, alert_email_to="ops@example.com", outbox_dir=tmp_path / "out")
    one.step()
    transport.close()
    [file] = (tmp_path / "out").glob("*.eml")
    assert b"Subject: Alert: dead of queue work: 1 dead letter" in file.read_bytes()


def test_a_worker_that_was_killed_is_told_by_those_that_live(
    engine: Engine, dsn: str, tmp_path: Path, zygote: Zygote
) -> None:
    Engine(engine.connection, "other").create()
    gone, left = zygote.start(dsn, tmp_path, ["work"]), zygote.start(dsn, tmp_path, ["other"], **EVERY)
    wait_until(lambda: engine.value("select count(*) from queue_worker.workers") == 2, 30, gone.said)
    gone.kill()
    engine.rows("update queue_worker_data.workers set last_seen = now() - interval '1 minute' where pid = %s", gone.pid)
    [told] = wait_until(lambda: left.events("alert.fired"), 30, left.said)
    assert told["alert"] == "worker_gone"
    assert f":{gone.pid}:" in told["detail"]


@pytest.mark.parametrize("settings", [{"burst": True}, {"alert_check_seconds": 0}])
def test_no_alerts_with_burst_or_where_they_are_off(engine: Engine, dsn: str, settings: dict[str, Any]) -> None:
    die(engine)
    with running(dsn, app_of(lambda job: None), **{**EVERY, **settings}) as worker:
        wait_until(worker.service.ready.is_set, 20)
        assert worker.service._supervisor is not None
        assert "alerts" not in worker.service._supervisor._side


def test_it_works_on_through_an_outage_of_the_database(engine: Engine, dsn: str) -> None:
    one, transport = checker(dsn)
    one.step()
    engine.rows(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
        " and pid <> pg_backend_pid() and backend_type = 'client backend'"
    )
    die(engine)
    with events.capture("alert.fired") as seen:
        for _ in range(3):
            with suppress(TransportUnavailable):
                one.step()
    transport.close()
    assert len(seen) == 1
