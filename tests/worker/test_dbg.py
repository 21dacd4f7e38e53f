"""The database goes away, comes back, falls silent, or loses a reply; nothing is lost and nobody is charged."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker import Job, embedded, events, migrate
from queue_worker.embedded import EmbeddedServer
from queue_worker.embedded_supervisor import postmaster
from tests.helpers import running, wait_until
from tests.proxy import Proxy
from tests.sql.engine import Engine
from tests.worker.kit import Door, app_of, turns


class OwnServer:
    """A Postgres of one test, with default durability, behind a proxy that always knows where it is."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._server = embedded.ensure(root)
        migrate.up(self._server.url)
        self.proxy = Proxy(("127.0.0.1", self._server.port))
        self.url = self.proxy.url(self._server.tcp_url)

    def crash(self, how: signal.Signals) -> None:
        """SIGQUIT is what `pg_ctl -m immediate` sends; SIGKILL leaves even that to the next start."""
        os.kill(self._server.pid, how)
        wait_until(lambda: postmaster(self._server.data_dir)[0] != self._server.pid or not _alive(self._server.pid))

    def start(self) -> None:
        old, self._server = self._server, embedded.ensure(self.root)
        old.close()
        self.proxy.target = ("127.0.0.1", self._server.port)

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._server.url, autocommit=True)

    def close(self) -> None:
        self.proxy.close()
        self._server.close()
        embedded.stop(self.root, delete=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    server = OwnServer(tmp_path_factory.mktemp("own") / "pg")
    yield server
    server.close()


@pytest.mark.parametrize('n', range(14))
def test_crashes_of_postgres_under_load_lose_nothing_and_charge_nobody(own: OwnServer, n) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        with job.transaction() as transaction:
            transaction.execute("insert into effects values (%s)", [job.payload["n"]])
        done.append(job.msg_id)

    done: list[int] = []
    total = 1500
    with own.connect() as connection:
        engine = Engine(connection).create()
        engine.rows("create table effects (n int not null)")
        engine.fill(total)
    with events.capture("database.back") as back, running(own.url, app_of(handle, lease=3, batch_size=20)) as worker:
        def diag():
            import sys, traceback
            w=worker.service.workers[0]; out=[]
            out.append(str({k:(v.outcome,v.started,v.lost,v.settled) for k,v in w.held.items()}))
            out.append(str((w._unsent,w._kept,w.executor.running,w.executor.finished,w.executor.stuck,w.executor.unfinished,w.executor.backlog,w._appetite._mean,w.connected,w.empty_claims)))
            out.append(str(vars(worker.service._gate)))
            out.append(str(len(done))+" back "+str(back))
            frames=sys._current_frames()
            for th in threading.enumerate():
                out.append(th.name+"\n"+"".join(traceback.format_stack(frames[th.ident])[-3:]))
            try:
                with own.connect() as c:
                    e=Engine(c)
                    out.append(str(e.rows("select msg_id, read_ct, vt-now() as d from pgmq.q_work limit 20")))
                    out.append(str(e.rows("select * from queue_worker_data.trouble")))
                    out.append(str(e.rows("select pid,state,wait_event,query from pg_stat_activity where application_name='queue_worker'")))
            except Exception as x: out.append(repr(x))
            return "\n".join(out)
        for number, how in enumerate((signal.SIGQUIT, signal.SIGKILL, signal.SIGQUIT), 1):
            wait_until(lambda number=number: len(done) > number * total // 5, 30, diag)
            own.crash(how)
            own.start()
            wait_until(lambda number=number: len(back) >= number, 30, diag)
        with own.connect() as connection:
            engine = Engine(connection)
            # A claim whose reply was lost comes back when its lease ends, one suspect at a time.
            wait_until(lambda: engine.count("queue") <= 40, 60, lambda: str(engine.count("queue")))
            while engine.count("queue"):
                before = engine.count("queue")
                engine.rows("update pgmq.q_work set vt = now() where read_ct > 0 and vt > now()")
                wait_until(lambda before=before: engine.count("queue") < before, 30, diag)
            assert engine.count("archive") == total
            assert engine.count("dead") == 0
            assert engine.value("select count(*) from queue_worker.failures") == 0
            assert engine.rows("select count(*) as rows, count(distinct n) as keys from effects") == [(total, total)]
            assert engine.value("select count(*) from queue_worker_data.trouble") == 0
        assert worker.service.workers[0].connected


