"""Pickup latency: from the commit of a message to the start of its handler, with NOTIFY on.

    python bench/pickup.py [--messages 300]

`idle`: the worker has slept for more than a second. `falling asleep`: 0 to 50 ms after the message before.

Reference in the same run: the time that LISTEN itself takes to hear a bare NOTIFY on the same server.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path

import psycopg

from queue_worker import App, Job, embedded, migrate
from queue_worker.config import load_settings
from queue_worker.service import Service


def quantiles(label: str, values: list[float]) -> None:
    cuts = statistics.quantiles(values, n=100)
    print(
        f"{label}: p50 {cuts[49] * 1e3:.1f} ms  p95 {cuts[94] * 1e3:.1f} ms  p99 {cuts[98] * 1e3:.1f} ms"
        f"  max {max(values) * 1e3:.1f} ms"
    )


def reference(url: str, count: int) -> list[float]:
    heard: list[float] = []
    with psycopg.connect(url, autocommit=True) as listener, psycopg.connect(url, autocommit=True) as sender:
        listener.execute("listen bare")
        for _ in range(count):
            sender.execute("select pg_notify('bare', '')")
            start = time.perf_counter()
            next(listener.notifies(timeout=5, stop_after=1))
            heard.append(time.perf_counter() - start)
    return heard


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=300)
    args = parser.parse_args()
    app = App(builtins=False)
    started: dict[int, float] = {}
    arrived = threading.Event()

    @app.processor("idle")
    def handle(job: Job) -> None:
        started[job.msg_id] = time.perf_counter()
        arrived.set()

    folder = Path(tempfile.mkdtemp())
    with embedded.ensure(folder) as server:
        migrate.up(server.url)
        settings = load_settings({"database_url": server.url, "state_dir": folder / "state"})
        service = Service(settings, app)
        thread = threading.Thread(target=service.run)
        thread.start()
        idle: list[float] = []
        falling: list[float] = []
        with psycopg.connect(server.url, autocommit=True) as sender:
            time.sleep(3)
            for _ in range(args.messages):
                pause = random.choice([1.1, 0.0, 0.01, 0.05])
                time.sleep(pause)
                arrived.clear()
                (msg_id,) = sender.execute("select queue_worker.send('idle', '{}')").fetchone()
                committed = time.perf_counter()
                arrived.wait(10)
                (idle if pause > 1 else falling).append(max(0.0, started[msg_id] - committed))
        service.stop()
        thread.join()
        quantiles("bare LISTEN                  ", reference(server.url, args.messages))
        quantiles("queue_worker, idle           ", idle)
        quantiles("queue_worker, falling asleep ", falling)
    embedded.stop(folder, delete=True)


if __name__ == "__main__":
    main()
