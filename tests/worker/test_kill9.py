"""kill -9 at random points under load: nothing is lost, nothing counts twice."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.helpers import wait_until
from tests.sql.engine import Engine
from tests.worker.processes import NOTES, Process, Zygote

# The longest test of all.
pytestmark = [pytest.mark.conformance(hosted=True), pytest.mark.timeout(300)]

KILLS = 32
MESSAGES = 1200
QUEUES = ("work", "other")
OPTIONS = {"lease": 2, "max_lost": 20, "batch_size": 20, "concurrency": 4}

EVERYWHERE = """
select message ->> 'key' as key, 'queue' as place from pgmq.q_{0} union all
select message ->> 'key', 'archive' from pgmq.a_{0} union all
select payload ->> 'key', 'dead' from queue_worker_data.dead_letters where queue = '{0}'
"""


def fill(engine: Engine) -> None:
    for queue in QUEUES:
        engine.rows(f"select queue_worker.create_queue('{queue}')")
        engine.rows(
            f"insert into pgmq.q_{queue} (vt, message) select now(), jsonb_build_object('key', '{queue}-' || g, 'do',"
            " case when g %% 3 = 0 then 'nothing' else 'effect' end) from generate_series(1, %s) g",
            MESSAGES,
        )


def archived(engine: Engine) -> int:
    return int(engine.value("select (select count(*) from pgmq.a_work) + (select count(*) from pgmq.a_other)"))


@pytest.mark.full
@pytest.mark.parametrize("seed", [int(os.environ.get("TEST_SEED", "20241"))])
def test_processes_killed_at_random_lose_nothing(
    dsn: str, db: psycopg.Connection[Any], zygote: Zygote, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    engine = Engine(db)
    db.execute(NOTES)
    fill(engine)
    points = sorted(chance.sample(range(20, int(len(QUEUES) * MESSAGES * 0.8)), KILLS))

    def start() -> Process:
        return zygote.start(dsn, tmp_path, QUEUES, options=OPTIONS)

    processes = [start(), start()]
    for point in points:
        wait_until(lambda point=point: archived(engine) >= point, 30, lambda: f"{archived(engine)} archived")
        victim = chance.randrange(len(processes))
        processes[victim].signal(signal.SIGKILL)
        assert processes[victim].ended() == -signal.SIGKILL
        processes[victim] = start()
    # Every start left behind by a kill is run again, one at a time.
    wait_until(lambda: archived(engine) == len(QUEUES) * MESSAGES, 60, lambda: f"{archived(engine)} archived")
    for process in processes:
        process.signal(signal.SIGTERM)
    assert [process.ended() for process in processes] == [0, 0]
    for queue in QUEUES:
        places = engine.rows(EVERYWHERE.format(queue))
        assert sorted(places) == sorted((f"{queue}-{n}", "archive") for n in range(1, MESSAGES + 1))
    wanted = len(QUEUES) * (MESSAGES - MESSAGES // 3)
    assert engine.rows("select count(*) as n, count(distinct key) as keys from effects") == [(wanted, wanted)]
    assert engine.value("select count(*) from queue_worker.failures") == 0
    assert engine.value("select count(*) from queue_worker_data.trouble") == 0
    assert engine.value("select count(*) from starts") >= wanted
