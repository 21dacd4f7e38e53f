"""What an idle worker costs: memory (PSS), CPU, and statements sent, with three queues on a direct connection.

python bench/idle.py [--seconds 60]
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

import psycopg

from queue_worker import embedded, migrate


def pss(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1]) / 1024


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def transactions(connection: psycopg.Connection[tuple]) -> int:
    connection.execute("select pg_stat_force_next_flush()")
    row = connection.execute("select xact_commit from pg_stat_database where datname = 'idle'").fetchone()
    return row[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    with embedded.ensure(folder) as server:
        with psycopg.connect(server.url, autocommit=True) as admin:
            admin.execute("create database idle")
        url = server.url.replace("/postgres?", "/idle?")
        migrate.up(url)
        environment = {**os.environ, "DATABASE_URL": url, "QUEUE_WORKER_STATE_DIR": str(folder / "state")}
        worker = subprocess.Popen(
            [sys.executable, "-m", "queue_worker", "start"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with psycopg.connect(server.url, autocommit=True) as observer:
                time.sleep(15)
                before, used = transactions(observer), cpu(worker.pid)
                time.sleep(args.seconds)
                after, used = transactions(observer), cpu(worker.pid) - used
                cycles = args.seconds / 5 * 3 + args.seconds / 15
                print(f"PSS {pss(worker.pid):.1f} MB, threads {len(os.listdir(f'/proc/{worker.pid}/task'))}")
                print(f"CPU {used / args.seconds * 100:.2f} %")
                print(
                    f"transactions {after - before} in {args.seconds:.0f} s"
                    f" (3 queues / 5 s + heartbeat / 15 s = {cycles:.0f})"
                )
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait()
    embedded.stop(folder, delete=True)


if __name__ == "__main__":
    main()
