"""Drain rate beside a bare loop: 20,000 no-op messages of 200 bytes, interleaved rounds, printed as ratios.

    python bench/drain.py [--rounds 5] [--messages 20000] [--delayed 0]

The reference is the smallest consumer there is: `pgmq.read(q, 30, 1000)` + `pgmq.delete(ids)` over psycopg. The
worker is the real one: leases, fences, pydantic payloads, threads. Both run on one embedded Postgres with default
durability. `--delayed N` puts N delayed messages in front of the worker's queue and of none.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psycopg
from pydantic import BaseModel

from queue_worker import App, Job, embedded, events, migrate
from queue_worker.config import load_settings
from queue_worker.service import Service


class Payload(BaseModel):
    id: int
    text: str


def fill(url: str, queue: str, count: int, delay: int = 0) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "insert into pgmq.q_" + queue + " (vt, message) select clock_timestamp() + make_interval(secs => %s),"
            " jsonb_build_object('id', g, 'text', repeat('x', 170)) from generate_series(1, %s) g",
            [delay, count],
        )
        connection.execute("checkpoint")


def bare(url: str, count: int) -> float:
    with psycopg.connect(url, autocommit=True) as connection:
        start, seen = time.perf_counter(), 0
        while seen < count:
            rows = connection.execute("select msg_id, message from pgmq.read('bare', 30, 1000)").fetchall()
            ids = [row[0] for row in rows]
            connection.execute("select pgmq.delete('bare', %s::bigint[])", [ids])
            seen += len(ids)
        return seen / (time.perf_counter() - start)


def worker(url: str, count: int, batch: int, concurrency: int) -> float:
    app = App(builtins=False)
    seen: list[int] = []
    times: list[float] = []

    @app.processor("fast", batch_size=batch, concurrency=concurrency, on_success="delete")
    def handle(job: Job[Payload]) -> None:
        if not seen:
            times.append(time.perf_counter())
        seen.append(job.payload.id)

    settings = load_settings({"database_url": url, "state_dir": Path(tempfile.mkdtemp()), "burst": True,
                              "log_level": "WARNING"})
    service = Service(settings, app)
    start = time.perf_counter()
    ended: list[float] = []

    def watch() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not ended:
                if len(seen) >= count and not connection.execute(
                        "select 1 from pgmq.q_fast where vt < now() + interval '10 minutes' limit 1").fetchone():
                    ended.append(time.perf_counter())
                time.sleep(0.002)

    observer = threading.Thread(target=watch)
    observer.start()
    assert service.run() == 0
    observer.join()
    assert sorted(seen) == list(range(1, count + 1)), "lost or twice"
    return count / (ended[0] - times[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--delayed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with embedded.ensure(Path(folder)) as server:
            migrate.up(server.url)
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("select pgmq.create('bare'), queue_worker.create_queue('fast')")
            ratios = []
            for number in range(args.rounds):
                fill(server.url, "bare", args.messages)
                one = bare(server.url, args.messages)
                with psycopg.connect(server.url, autocommit=True) as connection:
                    connection.execute("truncate pgmq.q_fast")
                if args.delayed:
                    fill(server.url, "fast", args.delayed, delay=86_400)
                fill(server.url, "fast", args.messages)
                two = worker(server.url, args.messages, args.batch, args.concurrency)
                ratios.append(two / one)
                print(f"round {number + 1}: bare {one:,.0f}/s  worker {two:,.0f}/s  ratio {two / one:.2f}", flush=True)
            print(f"median ratio {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})")
        embedded.stop(Path(folder), delete=True)


if __name__ == "__main__":
    main()
