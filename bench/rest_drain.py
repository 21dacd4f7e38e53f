"""Drain rate over REST beside the worker of the Supabase docs, interleaved rounds, printed as ratios.

    python bench/rest_drain.py [--rounds 5] [--messages 2000]

The reference reads 100 messages by `pgmq_public.read` and deletes them one by one by `pgmq_public.delete`, as the
documentation of Supabase Queues shows it, over one kept-alive connection. The worker is the real one, with batches of
100. Both have a PostgREST before one embedded Postgres with default durability; the worker has the tests' gateway too.

"""

from __future__ import annotations

import argparse
import statistics
import time

import httpx
import psycopg
from drain import fill, worker
from postgrest import SyncPostgrestClient
from project import prepared

from tests.supabase.postgrest import postgrest
from tests.supabase.project import jwt, project

# What the dashboard installs when queues are exposed, as far as the reference needs it.
PUBLIC = """
create schema pgmq_public;
create function pgmq_public.read(queue_name text, sleep_seconds integer, n integer) returns setof pgmq.message_record
    language sql as $$ select * from pgmq.read(queue_name := queue_name, vt := sleep_seconds, qty := n) $$;
create function pgmq_public.delete(queue_name text, message_id bigint) returns boolean
    language sql as $$ select pgmq.delete(queue_name := queue_name, msg_id := message_id) $$;
grant usage on schema pgmq_public, pgmq to service_role;
grant all on all tables in schema pgmq to service_role;
grant execute on all functions in schema pgmq_public, pgmq to service_role;
"""


def documented(url: str, count: int) -> float:
    key = jwt("service_role")
    headers = {"apikey": key, "Authorization": f"Bearer {key}"}
    with httpx.Client(headers=headers) as session:
        client = SyncPostgrestClient(url, schema="pgmq_public", headers=headers, http_client=session)
        start, seen = time.perf_counter(), 0
        while seen < count:
            found = client.rpc("read", {"queue_name": "bare", "sleep_seconds": 30, "n": 100}).execute().data
            for one in found:
                client.rpc("delete", {"queue_name": "bare", "message_id": one["msg_id"]}).execute()
            seen += len(found)
        return seen / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=2000)
    args = parser.parse_args()
    ratios = []
    with prepared() as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("select pgmq.create('bare')")
            connection.execute("select queue_worker.create_queue('fast')")
            connection.execute(PUBLIC)
        with postgrest(server.url, schemas="pgmq_public") as public, project(server.url) as ours:
            for number in range(1, args.rounds + 1):
                fill(server.url, "bare", args.messages)
                one = documented(f"http://127.0.0.1:{public.port}", args.messages)
                fill(server.url, "fast", args.messages)
                two = worker(server.url, "fast", args.messages, 100, 10, **ours.settings())
                ratios.append(two / one)
                print(
                    f"round {number}: documented {one:,.0f}/s  worker {two:,.0f}/s  ratio {two / one:.1f}", flush=True
                )
    print(f"median ratio {statistics.median(ratios):.1f} (min {min(ratios):.1f}, max {max(ratios):.1f})")


if __name__ == "__main__":
    main()
