"""How one database carries 1, 10 and 50 worker processes: connections, idle cost, rates, WAL for each message.

    python bench/workers.py [--workers 1 10 50]

Every worker is a real process with its default settings and two queues: `quick`, whose handler does nothing, and
`slow`, whose handler waits 50 ms. Rates stand beside those of the first number of workers in the same run, and `slow`
beside what its threads could do at most.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from queue_worker import App, Job, embedded, migrate

IDLE_SECONDS = 30.0
QUICK = 20_000
SLOW_SECONDS = 0.05
CONCURRENCY = 5

app = App(builtins=False)


@app.processor("quick", concurrency=CONCURRENCY)
def quick(job: Job[dict[str, int]]) -> None: ...


@app.processor("slow", concurrency=CONCURRENCY)
def slow(job: Job[dict[str, int]]) -> None:
    time.sleep(SLOW_SECONDS)


class Point(NamedTuple):
    """What was measured with so many workers."""

    workers: int
    connections: int
    idle_transactions: float
    idle_cpu: float
    pss: float
    quick: float
    slow: float
    wal: float


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 10, 50])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "server"
        with embedded.ensure(root, settings={"max_connections": "1000"}) as server:
            points = [measure(server.url, Path(folder), number) for number in args.workers]
        embedded.stop(root, delete=True)
    first = points[0]
    for point in points:
        most = point.workers * CONCURRENCY / SLOW_SECONDS
        print(
            f"{point.workers} workers: {point.connections} connections;"
            f" idle {point.idle_transactions:.1f} transactions/s, {point.idle_cpu:.1f} % CPU of workers and server,"
            f" {point.pss:.0f} MB a worker; quick {point.quick:.0f}/s ({point.quick / first.quick:.2f} of"
            f" {first.workers}), slow {point.slow:.0f}/s ({point.slow / most:.2f} of its threads' {most:.0f}/s);"
            f" WAL {point.wal:.0f} bytes a message",
            flush=True,
        )


def measure(url: str, folder: Path, number: int) -> Point:
    """Run `number` workers on a database of their own."""
    name = f"workers_{number}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"create database {name}")
        target = url.replace("/postgres?", f"/{name}?")
        migrate.up(target)
        postmaster = backend_parent(admin)
        with psycopg.connect(target, autocommit=True) as db:
            for queue in ("quick", "slow"):
                db.execute("select queue_worker.create_queue(%s)", [queue])
            workers = [start(target, folder / f"{name}_{one}") for one in range(number)]
            try:
                until(lambda: value(db, "select count(*) from queue_worker.workers") == number)
                time.sleep(10)
                idle = look_at_idle(admin, name, postmaster, workers)
                quick_rate, wal = drain(db, "quick", QUICK)
                slow_rate, _ = drain(db, "slow", min(400 * number, 8000))
            finally:
                for worker in workers:
                    worker.send_signal(signal.SIGTERM)
                for worker in workers:
                    worker.wait()
    return Point(number, *idle, quick_rate, slow_rate, wal)


def start(url: str, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir()
    environment = {
        **os.environ,
        "DATABASE_URL": url,
        "QUEUE_WORKER_STATE_DIR": str(folder),
        "QUEUE_WORKER_LOG_LEVEL": "WARNING",
        "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}",
    }
    return subprocess.Popen([sys.executable, "-m", "queue_worker", "start", "--app", "workers:app"], env=environment)


def look_at_idle(
    admin: psycopg.Connection[Any], name: str, postmaster: int, workers: list[subprocess.Popen[bytes]]
) -> tuple[int, float, float, float]:
    """Return connections, transactions a second, percent of a core, and the memory of a worker in MB."""
    connections = value(admin, f"select count(*) from pg_stat_activity where datname = '{name}'") - 1
    before, used, since = transactions(admin, name), cpu(postmaster, workers), time.monotonic()
    time.sleep(IDLE_SECONDS)
    seconds = time.monotonic() - since
    rate = (transactions(admin, name) - before) / seconds
    return connections, rate, (cpu(postmaster, workers) - used) / seconds * 100, pss(workers)


def drain(db: psycopg.Connection[Any], queue: str, count: int) -> tuple[float, float]:
    """Return messages a second, and the bytes of WAL that claiming and archiving one takes."""
    table = f"pgmq.q_{queue}"
    # Not due before all of them are there.
    db.execute(
        f"insert into {table} (vt, message) select clock_timestamp() + interval '1 day', jsonb_build_object('id', g)"
        " from generate_series(1, %s) g",
        [count],
    )
    db.execute("checkpoint")
    db.execute(f"update {table} set vt = clock_timestamp()")
    written = value(db, "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
    db.execute(f"notify queue_worker, '{queue}'")
    begin = time.monotonic()
    until(lambda: value(db, f"select count(*) from {table}") == 0)
    seconds = time.monotonic() - begin
    written = value(db, "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn") - written
    return count / seconds, float(written) / count


def until(condition: Any) -> None:
    end = time.monotonic() + 300
    while not condition():
        if time.monotonic() > end:
            sys.exit("gave up after 300 s")
        time.sleep(0.05)


def value(connection: psycopg.Connection[Any], statement: str) -> Any:
    (found,) = connection.execute(statement.encode()).fetchone() or (None,)
    return found


def transactions(connection: psycopg.Connection[Any], name: str) -> int:
    return int(value(connection, f"select xact_commit from pg_stat_database where datname = '{name}'"))


def backend_parent(connection: psycopg.Connection[Any]) -> int:
    """The process that all server processes are children of."""
    own = value(connection, "select pg_backend_pid()")
    return int(Path(f"/proc/{own}/stat").read_text().rsplit(")", 1)[1].split()[1])


def cpu(postmaster: int, workers: list[subprocess.Popen[bytes]]) -> float:
    """Seconds of CPU that the workers and the server's processes have used."""
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    ticks = 0
    for pid in (*children, *(worker.pid for worker in workers)):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def pss(workers: list[subprocess.Popen[bytes]]) -> float:
    """The proportional set size of a worker, in MB."""
    found = 0
    for worker in workers:
        text = Path(f"/proc/{worker.pid}/smaps_rollup").read_text()
        found += int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1])
    return found / 1024 / len(workers)


if __name__ == "__main__":
    main()
