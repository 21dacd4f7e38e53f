"""What Supabase's dashboard does to a database: `Expose Queues via PostgREST`, and a queue that is made there.

As its page does it (Supabase's documentation, "Queues > API"): six wrappers with the caller's
rights, usage and execute for everybody, all tables for the service key.
"""

from __future__ import annotations

from typing import Any

import psycopg

_WRAPPERS = """
create schema pgmq_public;
create function pgmq_public.send(queue_name text, message jsonb, sleep_seconds integer default 0) returns setof bigint
    language plpgsql set search_path = '' as $$ begin
    return query select * from pgmq.send(queue_name := queue_name, msg := message, delay := sleep_seconds); end $$;
create function pgmq_public.send_batch(queue_name text, messages jsonb[], sleep_seconds integer default 0)
    returns setof bigint language plpgsql set search_path = '' as $$ begin
    return query select * from pgmq.send_batch(queue_name := queue_name, msgs := messages, delay := sleep_seconds);
    end $$;
create function pgmq_public.read(queue_name text, sleep_seconds integer, n integer) returns setof pgmq.message_record
    language plpgsql set search_path = '' as $$ begin
    return query select * from pgmq.read(queue_name := queue_name, vt := sleep_seconds, qty := n); end $$;
create function pgmq_public.pop(queue_name text) returns setof pgmq.message_record
    language plpgsql set search_path = '' as $$ begin
    return query select * from pgmq.pop(queue_name := queue_name); end $$;
create function pgmq_public.archive(queue_name text, message_id bigint) returns boolean
    language plpgsql set search_path = '' as $$ begin
    return pgmq.archive(queue_name := queue_name, msg_id := message_id); end $$;
create function pgmq_public.delete(queue_name text, message_id bigint) returns boolean
    language plpgsql set search_path = '' as $$ begin
    return pgmq.delete(queue_name := queue_name, msg_id := message_id); end $$;
grant usage on schema pgmq_public, pgmq to anon, authenticated, service_role;
grant execute on all functions in schema pgmq_public, pgmq to anon, authenticated, service_role;
grant all on all tables in schema pgmq to service_role;
grant usage, select, update on all sequences in schema pgmq to anon, authenticated, service_role;
alter default privileges in schema pgmq grant all on tables to service_role;
alter default privileges in schema pgmq grant usage, select, update on sequences to anon, authenticated, service_role;
"""


def expose_queues(db: psycopg.Connection[Any]) -> None:
    """Switch `Expose Queues via PostgREST` on."""
    db.execute(_WRAPPERS.encode())


def create_queue(db: psycopg.Connection[Any], name: str) -> None:
    """Make a queue as the dashboard does: row level security on, and no policy."""
    db.execute("select pgmq.create(%s)", [name])
    db.execute(
        psycopg.sql.SQL("alter table pgmq.{} enable row level security").format(psycopg.sql.Identifier(f"q_{name}"))
    )
