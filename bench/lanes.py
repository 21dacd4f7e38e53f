"""A claim of 100 in a large queue beside the same claim in a small one: priorities, and ordered groups.

    python bench/lanes.py [--rounds 21] [--messages 1000000] [--groups 10000]

Each round claims 100, settles them and sends as many again, in both queues by turns; the time of the claim alone is
compared. The small queue holds 1,000 messages (ordered: in 500 groups), priorities 0 to 9 mixed in both.
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

SEND = """
    insert into pgmq.q_{} (vt, message, headers)
    select clock_timestamp(), jsonb_build_object('id', g), jsonb_build_object('priority', g %% 10) || {}
    from generate_series(1, %(count)s) g
"""
GROUP = "jsonb_build_object('group_key', 'tenant' || (g %% %(groups)s))"


def send(connection: psycopg.Connection[Any], queue: str, count: int, groups: int) -> None:
    statement = SEND.format(queue, GROUP if groups else "'{}'::jsonb")
    connection.execute(statement, {"count": count, "groups": groups})


def turn(connection: psycopg.Connection[Any], queue: str, groups: int) -> float:
    start = time.perf_counter()
    rows = connection.execute(
        "select msg_id, read_ct, enqueued_at from queue_worker.claim(%s, 100, 60) where kind = 'job'", [queue]
    ).fetchall()
    took = time.perf_counter() - start
    assert len(rows) == 100, len(rows)
    connection.execute(
        "select queue_worker.settle(%s, %s::bigint[], %s::int[], %s::timestamptz[], 'delete')",
        [queue, *([row[part] for row in rows] for part in range(3))],
    )
    send(connection, queue, 100, groups)
    return took


def compare(connection: psycopg.Connection[Any], name: str, rounds: int, large: int, groups: int) -> None:
    small_groups = 500 if groups else 0
    for queue, count, spread in (("small", 1000, small_groups), ("large", large, groups)):
        connection.execute("select queue_worker.create_queue(%s, %s)", [queue, bool(groups)])
        send(connection, queue, count, spread)
    connection.execute("vacuum analyze")
    for _ in range(5):
        turn(connection, "small", small_groups)
        turn(connection, "large", groups)
    times = [(turn(connection, "small", small_groups), turn(connection, "large", groups)) for _ in range(rounds)]
    small, big = (statistics.median(one[part] for one in times) * 1000 for part in (0, 1))
    ratios = [one[1] / one[0] for one in times]
    print(
        f"{name}: {large:,} messages {big:.1f} ms, 1,000 messages {small:.1f} ms,"
        f" median ratio {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})",
        flush=True,
    )
    for queue in ("small", "large"):
        connection.execute("select pgmq.drop_queue(queue_name => %s)", [queue])
        connection.execute("delete from queue_worker_data.queues where queue = %s", [queue])
        connection.execute("truncate queue_worker_data.groups, queue_worker_data.bells")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--groups", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with embedded.ensure(Path(folder)) as server:
            migrate.up(server.url)
            with psycopg.connect(server.url, autocommit=True) as connection:
                compare(connection, "priorities", args.rounds, args.messages, 0)
                compare(connection, "priorities, ordered groups", args.rounds, args.messages, args.groups)
        embedded.stop(Path(folder), delete=True)


if __name__ == "__main__":
    main()
