"""The shipped ecosystem.config.js under the real PM2."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.helpers import wait_until
from tests.pm2 import MODULES, Pm2, pm2_in

pytestmark = pytest.mark.full

Db = psycopg.Connection[Any]
RELOADS = 6
PAUSE = 5.0


@pytest.fixture
def pm2(tmp_path: Path, dsn: str) -> Iterator[Pm2]:
    with pm2_in(tmp_path, dsn) as manager:
        yield manager


def count(db: Db, table: str) -> int:
    (number,) = db.execute(f"select count(*) from {table}").fetchone() or (0,)
    return int(number)


def online(pm2: Pm2, app: str) -> bool:
    return bool(pm2.state(app)["status"] == "online")


def test_worker_and_api_start_survive_kill_9_and_stop_within_the_grace(pm2: Pm2, db: Db) -> None:
    pm2("start", "ecosystem.config.js")
    # PM2 has waited for both to be ready.
    assert "ready" in pm2.log()
    wait_until(lambda: count(db, "queue_worker.workers") == 1, 10)
    (url,) = re.findall(r"API and dashboard at (http://\S+)", pm2.log("api"))
    assert httpx.get(f"{url}/ready").json() == {"status": "ready"}

    # kill -9: PM2 starts it again, and it works.
    for app in ("queue-worker", "queue-worker-api"):
        first = pm2.state(app)["pid"]
        os.kill(first, signal.SIGKILL)
        # Until it is ready: PM2 7.0 starts again what is stopped before.
        wait_until(lambda app=app, first=first: pm2.state(app)["pid"] not in (0, first) and online(pm2, app), 30)
    db.execute("select queue_worker.send('slow', '{}')")
    wait_until(lambda: count(db, "pgmq.a_slow") == 1, 30)

    # stop: the running handler ends within the grace, and nothing is left invisible.
    db.execute("select queue_worker.send('slow', '{\"seconds\": 3}')")
    wait_until(lambda: db.execute("select sum(running) from queue_worker.queues").fetchone() == (1,), 10)
    pm2("stop", "ecosystem.config.js")
    assert [pm2.state(app)["status"] for app in ("queue-worker", "queue-worker-api")] == ["stopped"] * 2
    assert count(db, "pgmq.a_slow") == 2
    assert count(db, "pgmq.q_slow where vt > now()") == 0
    assert "stopped code=0" in pm2.log()


def test_a_configuration_error_is_not_restarted(pm2: Pm2) -> None:
    pm2.settings()
    pm2("start", "ecosystem.config.js")
    for app, log in (("queue-worker", "worker"), ("queue-worker-api", "api")):
        wait_until(lambda log=log: "no database is set" in pm2.log(log), 30)
        wait_until(lambda app=app: pm2.state(app)["pid"] == 0, 10)
        assert pm2.state(app)["restarts"] == 0


def test_a_recycled_worker_is_started_again(pm2: Pm2, dsn: str, db: Db) -> None:
    pm2.settings(f"DATABASE_URL={dsn}", "QUEUE_WORKER_MAX_JOBS=2")
    db.execute("select queue_worker.create_queue('slow')")
    db.execute("select pgmq.send('slow', '{}') from generate_series(1, 2)")
    pm2("start", "ecosystem.config.js", "--only", "queue-worker")
    wait_until(lambda: count(db, "pgmq.a_slow") == 2, 30)
    wait_until(lambda: pm2.state()["restarts"] == 1 and pm2.state()["status"] == "online", 30)
    db.execute("select pgmq.send('slow', '{}')")
    wait_until(lambda: count(db, "pgmq.a_slow") == 3, 30)
    pm2("stop", "queue-worker")


def test_the_parent_of_several_processes_answers_wait_ready_and_stops_them(pm2: Pm2, dsn: str, db: Db) -> None:
    """With the file that `init` writes; PM2 signals the parent and each of its children."""
    program = pm2.folder / ".venv" / "bin" / "queue-worker"
    text = subprocess.run(
        [program, "init", "pm2", "--print"], cwd=pm2.folder, capture_output=True, text=True, check=True
    ).stdout
    script = json.dumps(os.path.relpath(Path(sys.executable).parent / "queue-worker", pm2.folder))
    assert script in text
    (pm2.folder / "ecosystem.config.js").write_text(text.replace(script, '".venv/bin/queue-worker"'))
    pm2.settings(f"DATABASE_URL={dsn}", "QUEUE_WORKER_PROCESSES=2")
    pm2("start", "ecosystem.config.js", "--only", "queue-worker")
    assert "all processes are ready" in pm2.log()
    db.execute("select queue_worker.send('slow', '{\"seconds\": 3}') from generate_series(1, 2)")
    wait_until(lambda: db.execute("select sum(running) from queue_worker.queues").fetchone() == (2,), 20)
    pm2("stop", "queue-worker")
    assert pm2.state()["status"] == "stopped"
    assert count(db, "pgmq.a_slow") == 2
    assert count(db, "queue_worker.workers") == 0
    assert count(db, "queue_worker.failures") == 0


def test_a_list_that_was_saved_comes_back_with_pm2(pm2: Pm2, db: Db) -> None:
    """What `pm2 startup` makes the boot do is `pm2 resurrect`."""
    pm2("start", "ecosystem.config.js")
    before = pm2.state()["pid"]
    pm2("save")
    pm2("kill")
    pm2("resurrect")
    wait_until(lambda: count(db, "queue_worker.workers") == 1 and pm2.state()["status"] == "online", 30)
    assert pm2.state()["pid"] != before
    assert pm2.state("queue-worker-api")["status"] == "online"


def test_logs_rotate_and_the_worker_goes_on_writing(pm2: Pm2, db: Db) -> None:
    for name, value in (("max_size", "1K"), ("workerInterval", "1"), ("retain", "2")):
        pm2("set", f"pm2-logrotate:{name}", value)
    pm2("install", ".", folder=MODULES / "pm2-logrotate")
    pm2("start", "ecosystem.config.js", "--only", "queue-worker")

    def rotated() -> list[Path]:
        db.execute("select queue_worker.send('slow', '{}')")
        return list((pm2.folder / "logs").glob("worker__*.log"))

    wait_until(rotated, 60)
    wait_until(lambda: rotated() and "done queue=slow" in pm2.log(), 30)
    pm2("stop", "queue-worker")


@pytest.mark.timeout(240)
def test_reloads_under_load_lose_nothing_and_instances_share_the_queue(pm2: Pm2, dsn: str, db: Db) -> None:
    """30 seconds of load, a reload every five, two instances: every order has its row, and none has two."""
    db.execute("create table public.effects (number int, pid int)")
    pm2.change("instances: 1", "instances: 2")
    pm2("start", "ecosystem.config.js", "--only", "queue-worker")
    over = threading.Event()
    sent = 0

    def load() -> None:
        nonlocal sent
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not over.wait(0.1):
                connection.execute(
                    "select queue_worker.send('orders', jsonb_build_object('number', %s::int + n))"
                    " from generate_series(0, 9) as n",
                    [sent],
                )
                sent += 10

    producer = threading.Thread(target=load)
    producer.start()
    try:
        for _ in range(RELOADS):
            over.wait(PAUSE)
            pm2("reload", "queue-worker")
    finally:
        over.set()
        producer.join()
    assert sent >= 1000
    wait_until(lambda: count(db, "public.effects") >= sent, 60, lambda: f"{count(db, 'public.effects')} of {sent}")
    pm2("stop", "queue-worker")
    assert db.execute("select count(*), count(distinct number) from public.effects").fetchone() == (sent, sent)
    assert count(db, "pgmq.a_orders") == sent
    assert count(db, "pgmq.q_orders") == count(db, "queue_worker.dead_letters") == 0
    # More processes have worked than one instance can have had.
    assert count(db, "(select distinct pid from public.effects) as worked") > RELOADS + 1
    assert [one["restarts"] for one in pm2.states()] == [RELOADS] * 2
