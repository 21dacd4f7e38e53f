"""What a plain message costs the database, beside the engine as it was before lanes and limits (migrations 1 to 7).

    python bench/cost.py [--rounds 20]

WAL bytes and buffers per message are exact: 100 messages are sent with plain pgmq, then one call settles the last 100
and claims the next, in a queue that uses no feature. Both schemas stand in databases of their own on one server.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import psycopg

from queue_worker import embedded, migrate

BATCH = 100
TURN = """
    explain (analyze, buffers, format json) select * from queue_worker.settle_claim('plain',
        %s::bigint[], %s::int[], %s::timestamptz[], %s, '{}', '{}', '{}', '{}', '{}', '{}', '{}',
        100, 60, 0, 5, 'w', false)
"""
HELD = "select msg_id, read_ct, enqueued_at from pgmq.q_plain where read_ct > 0 order by msg_id"


class Side:
    """One schema: `wal` and `buffers` per message of each round."""

    def __init__(self, connection: psycopg.Connection[Any], on_success: str) -> None:
        self.connection = connection
        self.on_success = on_success
        self.sent: list[float] = []
        self.wal: list[float] = []
        self.buffers: list[float] = []

    def lsn(self) -> int:
        row = self.connection.execute("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
        assert row is not None
        return int(row[0])

    def round(self) -> None:
        before = self.lsn()
        self.connection.execute(
            "select pgmq.send_batch(queue_name => 'plain', msgs => array_agg(jsonb_build_object('id', g,"
            " 'text', repeat('x', 170)))) from generate_series(1, %s) g",
            [BATCH],
        )
        sent = self.lsn()
        held = self.connection.execute(HELD).fetchall()
        columns = [[row[part] for row in held] for part in range(3)]
        row = self.connection.execute(TURN, [*columns, self.on_success]).fetchone()
        assert row is not None
        plan = (row[0] if isinstance(row[0], list) else json.loads(row[0]))[0]["Plan"]
        self.sent.append((sent - before) / BATCH)
        self.wal.append((self.lsn() - sent) / BATCH)
        self.buffers.append((plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]) / BATCH)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        landed = Path(folder) / "landed"
        landed.mkdir()
        for file in sorted(migrate.sql_dir().glob("000[1-7]_*.sql")):
            shutil.copy(file, landed)
        root = Path(folder) / "server"
        # No full page images: they depend on when a checkpoint happens to come.
        with embedded.ensure(root, settings={"full_page_writes": "off", "autovacuum": "off"}) as server:
            for on_success in ("delete", "archive"):
                run(server.url, landed, on_success, args.rounds)
        embedded.stop(root, delete=True)


def run(url: str, landed: Path, on_success: str, rounds: int) -> None:
    sides = []
    for name, directory in (("before", landed), ("now", None)):
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(f"create database {name}_{on_success}")
        target = url.replace("/postgres?", f"/{name}_{on_success}?")
        migrate.up(target, directory=directory)
        connection = psycopg.connect(target, autocommit=True)
        connection.execute("select queue_worker.create_queue('plain')")
        sides.append(Side(connection, on_success))
    for _ in range(rounds):
        for side in sides:
            side.round()
    for what in ("sent", "wal", "buffers"):
        before, now = (statistics.median(getattr(side, what)[3:]) for side in sides)
        label = {"sent": "WAL bytes to send", "wal": "WAL bytes to claim and settle", "buffers": "buffers"}[what]
        print(f"{on_success}: {label} per message {now:.1f}, before {before:.1f}, ratio {now / before:.3f}", flush=True)
    for side in sides:
        side.connection.close()


if __name__ == "__main__":
    main()
