"""Pickup latency where NOTIFY cannot arrive, and what waiting costs: behind a transaction pooler and over REST.

    python bench/pickup_polled.py [--messages 150] [--idle 180] [--cycle 5] [--only rest]

`active`: messages come every 0 to 2 seconds. `calls a minute`: while they come, and in the last minute of `--idle`
seconds without any. `after idle`: one message, when the worker has been left alone so long.
Reference in the same run: the worker on a connection of its own, woken by NOTIFY.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from project import prepared, quantiles

from queue_worker import App, Job
from queue_worker.config import load_settings
from queue_worker.service import Service
from tests.pooler import pooler
from tests.supabase.project import project


class Worker:
    """A worker of three queues in a thread; notes when each message began."""

    def __init__(self, queue: str, cycle: float, **settings: Any) -> None:
        app = App(builtins=False)
        self.started: dict[int, float] = {}
        self._arrived = threading.Event()

        def handle(job: Job) -> None:
            self.started[job.msg_id] = time.perf_counter()
            self._arrived.set()

        for name in (queue, queue + "_b", queue + "_c"):
            app.processor(name, cycle=cycle)(handle)
        self.queue = queue
        self._service = Service(load_settings({**settings, "state_dir": Path(tempfile.mkdtemp())}), app)
        self._thread = threading.Thread(target=self._service.run)
        self._thread.start()
        self._service.ready.wait(30)

    def pickup(self, sender: psycopg.Connection[Any]) -> float:
        self._arrived.clear()
        (msg_id,) = sender.execute("select queue_worker.send(%s, '{}')", [self.queue]).fetchone()  # type: ignore[misc]
        committed = time.perf_counter()
        assert self._arrived.wait(30)
        return max(0.0, self.started[msg_id] - committed)

    def stop(self) -> None:
        self._service.stop()
        self._thread.join()


def measure(
    label: str, worker: Worker, sender: psycopg.Connection[Any], args: argparse.Namespace, calls: Callable[[], int]
) -> None:
    before, begin = calls(), time.perf_counter()
    values = []
    for _ in range(args.messages):
        time.sleep(random.uniform(0, 2))
        values.append(worker.pickup(sender))
    rate = (calls() - before) / (time.perf_counter() - begin) * 60
    quantiles(f"{label}, active    ", values)
    print(f"{label}, active    : {rate:.0f} calls a minute", flush=True)
    time.sleep(max(0, args.idle - 60))
    before = calls()
    time.sleep(60)
    print(f"{label}, idle      : {calls() - before} calls in the last minute of {args.idle} s", flush=True)
    late = [worker.pickup(sender)]
    print(f"{label}, after idle: {max(late):.2f} s, the cycle is {args.cycle:g} s", flush=True)
    worker.stop()


def statements(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(
        "select sum(xact_commit)::bigint from pg_stat_database where datname = current_database()"
    ).fetchone()
    return int(row[0]) if row else 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=150)
    parser.add_argument("--idle", type=int, default=180)
    parser.add_argument("--cycle", type=float, default=5.0)
    parser.add_argument("--only", choices=("own", "pooled", "rest"))
    args = parser.parse_args()
    with prepared() as server, psycopg.connect(server.url, autocommit=True) as sender:
        for name in ("own", "pooled", "rest"):
            for end in ("", "_b", "_c"):
                sender.execute("select queue_worker.create_queue(%s)", [name + end])
        with pooler(server.url) as front, project(server.url) as made:
            # Transactions on the server, for what does not go through the gateway; the senders' own are among them.
            if args.only in (None, "own"):
                own = Worker("own", args.cycle, database_url=server.url)
                measure("own connection", own, sender, args, lambda: statements(sender))
            if args.only in (None, "pooled"):
                pooled = Worker("pooled", args.cycle, database_url=front.url, pooler="yes")
                measure("pooler        ", pooled, sender, args, lambda: statements(sender))
            if args.only in (None, "rest"):
                rest = Worker("rest", args.cycle, **made.settings())
                measure("REST          ", rest, sender, args, lambda: made.gateway.requests)


if __name__ == "__main__":
    main()
