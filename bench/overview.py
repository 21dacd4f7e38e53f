"""One look at all queues as the dashboard takes it, beside counting every message, with 1,000,000 of them: as a ratio.

    python bench/overview.py [--messages 1000000] [--rounds 15]

The same connection asks both in turn. A tenth of the messages are delayed, and a week of minutes is kept.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from queue_worker import embedded, migrate

_LOOK = "select queue_worker.snapshot()"
_COUNT = "select * from queue_worker.list_queues()"


def fill(db: psycopg.Connection[Any], count: int) -> None:
    for queue in ("email", "reports", "payments"):
        db.execute("select queue_worker.create_queue(%s)", [queue])
        db.execute(
            "insert into queue_worker_data.minutes (queue, minute, done) select %s, g, 100 from"
            " generate_series(date_trunc('minute', now()) - interval '7 days', now(), interval '1 minute') g",
            [queue],
        )
    db.execute(
        "insert into pgmq.q_email (vt, message)"
        " select clock_timestamp() + case when g %% 10 = 0 then interval '1 day' else interval '0' end,"
        " jsonb_build_object('id', g, 'text', repeat('x', 170)) from generate_series(1, %s) g",
        [count],
    )
    # Not vacuumed: a queue that has just grown is when somebody looks.
    db.execute("analyze pgmq.q_email")


def seconds(db: psycopg.Connection[Any], query: str) -> float:
    start = time.perf_counter()
    db.execute(query).fetchall()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        embedded.ensure(Path(folder) / "pg") as server,
        psycopg.connect(server.url, autocommit=True) as db,
    ):
        migrate.up(server.url)
        fill(db, options.messages)
        looks, counts = [], []
        for _ in range(options.rounds):
            looks.append(seconds(db, _LOOK))
            counts.append(seconds(db, _COUNT))
        ratio = statistics.median(one / other for one, other in zip(looks, counts, strict=True))
        look, slowest = statistics.median(looks) * 1000, max(looks) * 1000
        print(f"{options.messages} messages: a look {look:.1f} ms, the slowest {slowest:.1f} ms")
        print(f"counting all {statistics.median(counts) * 1000:.1f} ms; ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
