"""Drain rate while 1,000,000 archived messages are being pruned, beside the rate without: paired, as ratios.

    python bench/retention.py [--rounds 11] [--archived 1000000] [--messages 20000]

Messages are drained through `settle_claim` in batches of 100 into the archive, as a worker does, while a worker's own
housekeeping prunes the same archive on another connection. A round ends when its messages are done; what is left of the
old archive is pruned in the next one, and filled up again when it is used up.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psycopg

from queue_worker import embedded, migrate
from queue_worker.chores import Housekeeper
from queue_worker.config import QueueOptions
from queue_worker.transport.database import PostgresDatabase
from queue_worker.upkeep import queue_chores

_TURN = (
    "select kind, msg_id, read_ct, enqueued_at from queue_worker.settle_claim('keep', %s::bigint[], %s::int[],"
    " %s::timestamptz[], 'archive', '{}', '{}', '{}', '{}', '{}', '{}', '{}', 100, 60, 0, 5, 'bench', false)"
)
_OLD = "select count(*) from pgmq.a_keep where archived_at < now() - interval '7 days'"


def fill_archive(db: psycopg.Connection[Any], count: int) -> None:
    db.execute(
        "insert into pgmq.a_keep (msg_id, enqueued_at, archived_at, vt, message)"
        " select coalesce((select min(msg_id) from pgmq.a_keep), 0) - g, now() - interval '30 days',"
        " now() - interval '20 days' + g * interval '1 s', now(), jsonb_build_object('id', g, 'text', repeat('x', 170))"
        " from generate_series(1, %s) g",
        [count],
    )
    db.execute("vacuum analyze pgmq.a_keep")
    db.execute("checkpoint")


def drain(db: psycopg.Connection[Any], count: int) -> float:
    db.execute(
        "insert into pgmq.q_keep (vt, message) select clock_timestamp(),"
        " jsonb_build_object('id', g, 'text', repeat('x', 170)) from generate_series(1, %s) g",
        [count],
    )
    start, seen, receipts = time.perf_counter(), 0, [[], [], []]
    while True:
        jobs = [row for row in db.execute(_TURN, receipts).fetchall() if row[0] == "job"]
        if not jobs:
            return seen / (time.perf_counter() - start)
        seen += len(jobs)
        receipts = [[job[part] for job in jobs] for part in (1, 2, 3)]


def drain_while_pruning(url: str, db: psycopg.Connection[Any], count: int) -> float:
    database = PostgresDatabase(lambda: url)
    chore, _ = queue_chores("keep", QueueOptions())
    housekeeper = Housekeeper(database.transport(), [chore])
    thread = threading.Thread(target=housekeeper.work)
    thread.start()
    try:
        return drain(db, count)
    finally:
        housekeeper.stop()
        thread.join()
        database.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--archived", type=int, default=1_000_000)
    parser.add_argument("--messages", type=int, default=20_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with embedded.ensure(Path(folder)) as server:
            migrate.up(server.url)
            with psycopg.connect(server.url, autocommit=True) as db:
                db.execute("select queue_worker.create_queue('keep')")
                fill_archive(db, args.archived)
                ratios = []
                for number in range(args.rounds):
                    (before,) = db.execute(_OLD).fetchone() or (0,)
                    # Which one comes first alternates: vacuum and checkpoints of a run hit the one behind it.
                    if number % 2:
                        pruning, alone = drain_while_pruning(server.url, db, args.messages), drain(db, args.messages)
                    else:
                        alone, pruning = drain(db, args.messages), drain_while_pruning(server.url, db, args.messages)
                    (left,) = db.execute(_OLD).fetchone() or (0,)
                    ratios.append(pruning / alone)
                    print(
                        f"round {number + 1}: alone {alone:,.0f}/s  pruning {pruning:,.0f}/s  ratio {ratios[-1]:.2f}"
                        f"  pruned {before - left:,}",
                        flush=True,
                    )
                    if left < args.archived // 10:
                        fill_archive(db, args.archived)
                print(f"median ratio {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})")
        embedded.stop(Path(folder), delete=True)


if __name__ == "__main__":
    main()
