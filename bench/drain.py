"""Drain rate beside a bare loop: 20,000 no-op messages of 200 bytes, interleaved rounds, printed as ratios.

    python bench/drain.py [--rounds 21] [--messages 20000] [--delayed 0]

The reference is the smallest consumer there is: `pgmq.read(q, 30, 1000)` + `pgmq.delete(ids)` over psycopg. The
worker is the real one: leases, fences, pydantic payloads, threads. Both run on one embedded Postgres with default
durability. With `--delayed N` the reference is the worker itself on an empty queue, and N delayed messages stand in
front of its other queue.
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
from pydantic import BaseModel

from queue_worker import App, Job, embedded, migrate
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


def worker(url: str, queue: str, count: int, batch: int, concurrency: int, **reach: Any) -> float:
    """Drain a queue with a real worker; returns messages a second. `reach`: its settings, where it has no URL."""
    app = App(builtins=False)
    seen: list[int] = []
    times: list[float] = []

    @app.processor(queue, batch_size=batch, concurrency=concurrency, on_success="delete")
    def handle(job: Job[Payload]) -> None:
        if not seen:
            times.append(time.perf_counter())
        seen.append(job.payload.id)

    common = {"state_dir": Path(tempfile.mkdtemp()), "burst": True, "log_level": "WARNING"}
    settings = load_settings({**(reach or {"database_url": url}), **common})
    service = Service(settings, app)
    ended: list[float] = []

    def watch() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not ended:
                if (
                    len(seen) >= count
                    and not connection.execute(
                        "select 1 from pgmq.q_" + queue + " where vt < now() + interval '10 minutes' limit 1"
                    ).fetchone()
                ):
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
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--delayed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with embedded.ensure(Path(folder)) as server:
            migrate.up(server.url)
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("select pgmq.create('bare')")
                connection.execute("select queue_worker.create_queue('fast'), queue_worker.create_queue('clear')")
                if args.delayed:
                    fill(server.url, "fast", args.delayed, delay=86_400)
                connection.execute("vacuum analyze")
            ratios = []
            for number in range(args.rounds):
                reference = "clear" if args.delayed else "bare"
                fill(server.url, reference, args.messages)
                one = (
                    worker(server.url, "clear", args.messages, args.batch, args.concurrency)
                    if args.delayed
                    else bare(server.url, args.messages)
                )
                fill(server.url, "fast", args.messages)
                two = worker(server.url, "fast", args.messages, args.batch, args.concurrency)
                ratios.append(two / one)
                print(
                    f"round {number + 1}: {reference} {one:,.0f}/s  worker {two:,.0f}/s  ratio {two / one:.2f}",
                    flush=True,
                )
            print(f"median ratio {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})")
        embedded.stop(Path(folder), delete=True)


if __name__ == "__main__":
    main()
