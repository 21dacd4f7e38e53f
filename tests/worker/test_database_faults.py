"""The database goes away, comes back, falls silent, or loses a reply; nothing is lost and nobody is charged."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker import Job, events
from queue_worker.embedded import EmbeddedServer
from tests.helpers import running, wait_until
from tests.own_server import OwnServer
from tests.proxy import Proxy
from tests.sql.engine import Engine
from tests.worker.kit import Door, app_of, hurry, turns


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    server = OwnServer(tmp_path_factory.mktemp("own") / "pg")
    yield server
    server.close()


def test_crashes_of_postgres_under_load_lose_nothing_and_charge_nobody(own: OwnServer) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        with job.transaction() as transaction:
            transaction.execute("insert into effects values (%s)", [job.payload["n"]])
        done.append(job.msg_id)

    done: list[int] = []
    total = 900
    with own.connect() as connection:
        engine = Engine(connection).create()
        engine.rows("create table effects (n int not null)")
        engine.fill(total)
    with events.capture("database.back") as back, running(own.url, app_of(handle, lease=3, batch_size=20)) as worker:
        for number, how in enumerate((signal.SIGQUIT, signal.SIGKILL, signal.SIGQUIT), 1):
            wait_until(lambda number=number: len(done) > number * total // 5, 30)
            own.crash(how)
            own.start()
            wait_until(lambda number=number: len(back) >= number, 30)
        with own.connect() as connection:
            engine = Engine(connection)
            # A claim whose reply was lost comes back when its lease ends, one suspect at a time.
            wait_until(lambda: hurry(engine) or engine.count("queue") == 0, 60, lambda: str(engine.count("queue")))
            assert engine.count("archive") == total
            # No handler was told of a commit that the crash undid.
            assert len(done) == total
            assert engine.count("dead") == 0
            assert engine.value("select count(*) from queue_worker.failures") == 0
            assert engine.rows("select count(*) as rows, count(distinct n) as keys from effects") == [(total, total)]
            assert engine.value("select count(*) from queue_worker_data.trouble") == 0
        assert worker.service.workers[0].connected


def test_a_worker_that_starts_before_its_database_waits_for_it(own: OwnServer) -> None:
    own.crash(signal.SIGQUIT)
    with events.capture() as seen, running(own.url, app_of(lambda job: None)) as worker:
        wait_until(lambda: [name for name, _ in seen].count("database.lost") == 1)
        assert worker.code is None
        own.start()
        wait_until(lambda: "worker.ready" in [name for name, _ in seen], 30)
        with own.connect() as connection:
            engine = Engine(connection)
            engine.send({})
            wait_until(lambda: engine.count("archive") == 1)
    assert worker.code == 0


def test_a_worker_that_waits_for_its_database_can_be_stopped(tmp_path: Path) -> None:
    nowhere = f"postgresql://postgres@/x?host={tmp_path}"
    with events.capture("database.lost") as lost, running(nowhere, app_of(lambda job: None)) as worker:
        wait_until(lambda: lost)
    assert worker.code == 0


def backends(engine: Engine) -> list[int]:
    return [
        row[0]
        for row in engine.rows(
            "select pid from pg_stat_activity where application_name = 'queue_worker' and datname = current_database()"
        )
    ]


def test_every_connection_of_a_worker_may_be_killed(dsn: str, engine: Engine) -> None:
    """The loop's, the keeper's, the listener's and the handlers': each comes back by itself."""

    def handle(job: Job[dict[str, Any]]) -> None:
        if "wait" in job.payload:
            door.wait()
        with job.transaction():
            pass

    door = Door()
    with events.capture("keeper.error") as keeper, running(dsn, app_of(handle, lease=2), cycle_seconds=60) as worker:
        for number in (1, 2):
            engine.send({})
            wait_until(lambda number=number: hurry(engine) or engine.count("archive") == number)
            wait_until(lambda: worker.service.workers[0].listening)
            # The keeper connects again with its next heartbeat, 15 s at the latest.
            pids = wait_until(lambda: len(found := backends(engine)) == 4 and found, 30)
            engine.rows("select pg_terminate_backend(pid) from unnest(%s::int[]) pid", pids)
        waiting = engine.send({"wait": 1})
        door.reached()
        before = engine.state(waiting).vt
        wait_until(lambda: engine.state(waiting).vt > before)
        door.open()
        wait_until(lambda: hurry(engine) or engine.count("archive") == 3)
        wait_until(lambda: worker.service.workers[0].listening)
    assert keeper == []
    assert engine.value("select count(*) from queue_worker.failures") == 0


def test_a_silent_network_is_cut_off_and_work_goes_on(proxied: str, proxy: Proxy, engine: Engine) -> None:
    app = app_of(lambda job: None, cycle=0.1)
    with events.capture() as seen, running(proxied, app, call_timeout_seconds=1) as worker:
        engine.send({})
        wait_until(lambda: engine.count("archive") == 1)
        proxy.blackhole()
        wait_until(lambda: "database.lost" in [name for name, _ in seen], 20)
        proxy.heal()
        engine.send({})
        wait_until(lambda: engine.count("archive") == 2, 20)
        assert worker.code is None
        wait_until(lambda: "database.back" in [name for name, _ in seen], 20)


def test_a_silent_network_at_the_start_and_at_the_end_holds_up_nothing(proxied: str, proxy: Proxy) -> None:
    proxy.blackhole()
    with events.capture() as seen, running(proxied, app_of(lambda job: None), call_timeout_seconds=1) as worker:
        wait_until(lambda: "database.lost" in [name for name, _ in seen], 20)
        proxy.heal()
        wait_until(lambda: "worker.ready" in [name for name, _ in seen], 20)
        proxy.blackhole()
        assert worker.stop(20) == 0


def test_a_silent_network_frees_the_thread_of_a_handler_at_its_time_limit(
    proxied: str, proxy: Proxy, engine: Engine
) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        with job.transaction() as transaction:
            if not tries:
                tries.append(job.msg_id)
                proxy.blackhole()
                transaction.execute("select 1")

    tries: list[int] = []
    msg_id = engine.send({})
    app = app_of(handle, timeout=2, retry=(0,), concurrency=2)
    with events.capture("message.retried") as retried, running(proxied, app, call_timeout_seconds=1) as worker:
        wait_until(lambda: tries)
        (loop,) = worker.service.workers
        wait_until(lambda: loop.executor.stuck or retried, 20)
        proxy.heal()
        wait_until(lambda: retried, 20)
        wait_until(lambda: loop.executor.free == 2 and not loop.executor.running, 20)
        proxy.cut()  # the far end learns that its client has gone, and lets go of the row
        wait_until(lambda: engine.places(msg_id) == ["archive"], 20)


def test_a_settle_whose_reply_is_lost_is_sent_again_and_counts_once(proxied: str, proxy: Proxy, engine: Engine) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        starts.append(job.msg_id)
        proxy.drop_reply(b"settle_claim")
        if job.payload.get("fail") and job.attempt == 1:
            raise ValueError("once")

    starts: list[int] = []
    # Nothing but the end of the handler makes the loop speak, so it is that reply that is lost.
    app = app_of(handle, concurrency=1, batch_size=1, cycle=60, retry=(600,))
    with events.capture() as seen, running(proxied, app, pooler="yes") as worker:
        wait_until(lambda: worker.service.workers and worker.service.workers[0].empty_claims)
        first = engine.send({})
        worker.service.workers[0].wake()
        wait_until(lambda: "message.done" in [name for name, _ in seen], 20)
        second = engine.send({"fail": True})
        worker.service.workers[0].wake()
        wait_until(lambda: "message.retried" in [name for name, _ in seen], 20)
    names = [name for name, _ in seen]
    assert proxy.dropped == 2
    assert (names.count("message.done"), names.count("message.retried"), names.count("message.lease_lost")) == (1, 1, 0)
    assert starts == [first, second]
    assert engine.places(first) == ["archive"]
    assert engine.trouble(second).failures == 1


def test_a_claim_whose_reply_is_lost_is_run_once_when_its_lease_ends(
    proxied: str, proxy: Proxy, engine: Engine
) -> None:
    starts: list[int] = []
    app = app_of(lambda job: starts.append(job.msg_id), cycle=60, lease=600)
    with events.capture("database.back") as back, running(proxied, app, pooler="yes") as worker:
        wait_until(lambda: worker.service.workers and worker.service.workers[0].empty_claims)
        # In one transaction: a worker that looks around by itself must not claim it before its reply is to be lost.
        with engine.connection.transaction():
            msg_id = engine.send({})
            proxy.drop_reply(b"settle_claim")
        worker.service.workers[0].wake()
        wait_until(lambda: back)
        assert engine.state(msg_id)[:2] == (1, False)
        engine.age()
        worker.service.workers[0].wake()
        wait_until(lambda: engine.count("archive") == 1)
    assert starts == [msg_id]
    assert engine.value("select count(*) from queue_worker.failures") == 0


def test_connections_that_are_cut_all_the_time_lose_nothing(proxied: str, proxy: Proxy, engine: Engine) -> None:
    engine.rows("create table effects (n bigint not null)")
    done = threading.Semaphore(0)

    def handle(job: Job[dict[str, Any]]) -> None:
        with job.transaction() as transaction:
            transaction.execute("insert into effects values (%s)", [job.msg_id])
        done.release()

    total = 400
    engine.fill(total)
    with running(proxied, app_of(handle, batch_size=10, lease=2)):
        for _ in range(15):
            for _ in range(total // 30):
                assert done.acquire(timeout=30)
            proxy.cut()
        wait_until(lambda: hurry(engine) or engine.count("queue") == 0, 40, lambda: str(engine.count("queue")))
    assert engine.rows("select count(*) as rows, count(distinct n) as keys from effects") == [(total, total)]
    assert engine.count("archive") == total
    assert engine.value("select count(*) from queue_worker.failures") == 0


def test_a_server_that_refuses_connections_is_waited_for(dsn: str, engine: Engine, server: EmbeddedServer) -> None:
    name = dsn.partition("@/")[2].partition("?")[0]
    with (
        psycopg.connect(server.url, autocommit=True) as admin,
        events.capture("database.lost") as lost,
        running(dsn, app_of(lambda job: None)) as worker,
    ):
        wait_until(lambda: worker.service.workers)
        turns(worker, "work", 1)
        admin.execute(f"alter database {name} allow_connections false")
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s"
            " and application_name = 'queue_worker'",
            [name],
        )
        wait_until(lambda: lost)
        admin.execute(f"alter database {name} allow_connections true")
        engine.send({})
        wait_until(lambda: engine.count("archive") == 1)
