"""A rate limit of 100 per second, kept by four worker processes for 30 seconds.

    python bench/rate.py [--seconds 30] [--rate 100] [--processes 4]

Prints how many were handled beside what the limit allows, and the most in any one second by the workers' own starts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg

from queue_worker import App, Job, embedded, migrate

app = App(builtins=False)


@app.processor("limited", batch_size=50, concurrency=10, on_success="delete")
def handle(job: Job[dict[str, int]]) -> None:
    with Path(os.environ["STARTS"]).open("a") as file:
        file.write(f"{time.time()}\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--rate", type=int, default=100)
    parser.add_argument("--processes", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, embedded.ensure(Path(folder) / "server") as server:
        migrate.up(server.url)
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("select queue_worker.create_queue('limited')")
            connection.execute("select queue_worker.set_rate_limit('limited', %s)", [args.rate])
            workers = [start(server.url, Path(folder), number) for number in range(args.processes)]
            while connection.execute("select count(*) from queue_worker.workers").fetchone() != (args.processes,):
                time.sleep(0.1)
            connection.execute(
                "insert into pgmq.q_limited (vt, message) select clock_timestamp(), jsonb_build_object('id', g)"
                " from generate_series(1, %s) g",
                [args.rate * args.seconds * 2],
            )
            connection.execute("notify queue_worker, 'limited'")
            time.sleep(args.seconds + 2)
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.wait()
        report(sorted(starts(Path(folder))), args.rate, args.seconds)
        embedded.stop(Path(folder) / "server", delete=True)


def start(url: str, folder: Path, number: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "DATABASE_URL": url,
        "STARTS": str(folder / f"starts-{number}"),
        "QUEUE_WORKER_STATE_DIR": str(folder / f"state-{number}"),
        "QUEUE_WORKER_LOG_LEVEL": "WARNING",
        "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}",
    }
    command = [sys.executable, "-m", "queue_worker", "start", "--app", "rate:app", "-q", "limited"]
    return subprocess.Popen(command, env=environment)


def starts(folder: Path) -> list[float]:
    return [float(line) for file in folder.glob("starts-*") for line in file.read_text().splitlines()]


def report(times: list[float], rate: int, seconds: int) -> None:
    # One window is full as soon as it begins, so the count ends where the next one would.
    counted = [one for one in times if one < times[0] + seconds - 0.5]
    most = max(sum(first <= one < first + 1 for one in times) for first in times)
    allowed = rate * seconds
    print(
        f"{len(counted)} handled in {seconds} s, allowed {allowed}: ratio {len(counted) / allowed:.3f};"
        f" most in any one second {most} (starts of handlers, which follow their claims by a moment)"
    )


if __name__ == "__main__":
    main()
