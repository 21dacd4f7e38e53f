"""Transactions of handlers when the connection dies, the answer is lost, or the database says no."""

from __future__ import annotations

import threading
from typing import Any

import psycopg

from queue_worker import Job, events
from queue_worker.message import Receipt
from queue_worker.transport.transactions import TransactionPool
from tests.helpers import running, wait_until
from tests.proxy import Proxy
from tests.sql.engine import Engine
from tests.worker.kit import app_of
from tests.worker.test_transactions import failures, write, written


def test_a_connection_killed_before_the_commit_keeps_nothing_and_charges_nobody(dsn: str, effects: Engine) -> None:
    killed = []

    def handle(job: Job[dict[str, Any]]) -> None:
        with job.transaction() as transaction:
            transaction.execute("insert into effects values (%s)", [job.msg_id])
            if not killed:
                killed.append(1)
                pid = transaction.execute("select pg_backend_pid()").fetchone()[0]
                effects.rows("select pg_terminate_backend(%s)", pid)

    msg_id = effects.send({})
    with events.capture("message.released") as released, running(dsn, app_of(handle, max_attempts=1)):
        wait_until(lambda: released)
        assert (written(effects), effects.places(msg_id)) == ([], ["queue"])
        effects.age()
        wait_until(lambda: effects.count("archive") == 1)
    assert (written(effects), failures(effects)) == ([msg_id], 0)


def test_a_commit_without_an_answer_that_committed_is_done_and_not_run_again(
    proxied: str, proxy: Proxy, effects: Engine
) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        starts.append(job.msg_id)
        proxy.drop_reply(b"COMMIT")
        write(job)

    starts: list[int] = []
    msg_id = effects.send({})
    with events.capture("message.done") as done, running(proxied, app_of(handle, lease=600)):
        wait_until(lambda: done, 20)
    assert proxy.dropped == 1
    assert starts == [msg_id]
    assert (written(effects), effects.places(msg_id)) == ([msg_id], ["archive"])


def test_a_transaction_number_that_was_given_to_somebody_else_proves_nothing(dsn: str, effects: Engine) -> None:
    """After a crash the server gives away again the numbers of transactions that it never wrote down."""
    effects.send({})
    msg_id, read_ct, enqueued_at = effects.take_one()
    receipt = Receipt(msg_id, read_ct, enqueued_at)
    somebody_elses = effects.value("select pg_current_xact_id()::text")
    pool = TransactionPool(lambda: dsn, pooler=False, size=1)
    assert pool._committed(somebody_elses, "work", receipt) is False
    effects.settle(done=[receipt])
    assert pool._committed(somebody_elses, "work", receipt) is True


def test_a_commit_that_never_arrived_keeps_nothing_and_charges_nobody(
    proxied: str, proxy: Proxy, effects: Engine
) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        with job.transaction() as transaction:
            transaction.execute("insert into effects values (%s)", [job.msg_id])
            if not starts:
                proxy.cut()
            starts.append(job.msg_id)

    starts: list[int] = []
    msg_id = effects.send({})
    with events.capture("message.released") as released, running(proxied, app_of(handle, max_attempts=1)):
        wait_until(lambda: released, 20)
        effects.age()
        wait_until(lambda: effects.count("archive") == 1, 20)
    assert starts == [msg_id, msg_id]
    assert (written(effects), failures(effects)) == ([msg_id], 0)


def test_a_deadlock_costs_no_attempt(dsn: str, effects: Engine, db: psycopg.Connection[Any]) -> None:
    db.execute("create table accounts as select g as id, 0 as hits from generate_series(1, 2) g")
    meet = threading.Barrier(2)

    def handle(job: Job[dict[str, Any]]) -> None:
        first, second = job.payload["order"]
        with job.transaction() as transaction:
            transaction.execute("set local deadlock_timeout = '50ms'")
            transaction.execute("update accounts set hits = hits + 1 where id = %s", [first])
            if not meet.broken and job.msg_id not in met:
                met.append(job.msg_id)
                meet.wait(20)
            transaction.execute("update accounts set hits = hits + 1 where id = %s", [second])

    met: list[int] = []
    effects.send({"order": [1, 2]})
    effects.send({"order": [2, 1]})
    with events.capture("message.released") as released, running(dsn, app_of(handle, max_attempts=1)):
        wait_until(lambda: released, 20)
        effects.rows("update pgmq.q_work set vt = now() where vt < now() + interval '10 s'")
        wait_until(lambda: effects.count("archive") == 2, 20)
    assert failures(effects) == 0
    assert db.execute("select hits from accounts").fetchall() == [(2,), (2,)]


def test_a_transaction_that_outlives_the_time_limit_is_cut_off_and_charged(dsn: str, effects: Engine) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        if job.attempt == 1:
            with job.transaction() as transaction:
                transaction.execute("insert into effects values (%s)", [job.msg_id])
                transaction.execute("select pg_sleep(600)")

    msg_id = effects.send({})
    with running(dsn, app_of(handle, timeout=1, retry=(0,))) as worker:
        wait_until(lambda: effects.count("archive") == 1, 30)
        wait_until(lambda: worker.service.workers[0].executor.free == 5)
    assert effects.rows("select kind from queue_worker.failures where msg_id = %s", msg_id) == [("timeout",)]
    assert written(effects) == []
