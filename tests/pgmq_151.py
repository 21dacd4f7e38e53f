"""pgmq reduced to what 1.5.1 has, the version of hosted Supabase: no `last_read_at`, none of the newer functions.

Its SQL is in no registry, so it is made from the SQL that the PyPI package ships. What it has was
read from pg_proc of each version.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import psycopg

# What 1.5.1 does not have, by name; pop and set_vt are there in fewer forms.
_NEWER = (
    "read_grouped", "read_grouped_rr", "read_grouped_head", "read_grouped_with_poll", "read_grouped_rr_with_poll",
    "read_grouped_head_with_poll", "enable_notify_insert", "disable_notify_insert", "update_notify_insert",
    "list_notify_insert_throttles", "bind_topic", "unbind_topic", "send_topic", "send_batch_topic",
    "list_topic_bindings", "test_routing", "validate_topic_pattern", "validate_routing_key", "create_fifo_index",
    "create_fifo_indexes_all",
)  # fmt: skip

_OLD_SET_VT = "pgmq.set_vt(text,bigint,integer)"


def reduced_sql() -> str:
    """Return pgmq's SQL without the column `last_read_at`."""
    text = (files("pgmq") / "sql" / "pgmq.sql").read_text()
    text = re.sub(r",\s*last_read_at = clock_timestamp\(\)(?!,)", "", text)
    text = re.sub(r"last_read_at = clock_timestamp\(\),\s*", "", text)
    text = re.sub(r"last_read_at TIMESTAMP WITH TIME ZONE,\s*", "", text)
    text = re.sub(r"(?:m\.)?last_read_at, ", "", text)
    assert "last_read_at" not in text
    return text


def install(url: str) -> None:
    """Bring the reduced pgmq into a database."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create schema if not exists pgmq")
        connection.execute(reduced_sql().encode())
        newer = connection.execute(
            "select oid::regprocedure::text from pg_proc where pronamespace = 'pgmq'::regnamespace and"
            " (proname = any (%s) or (proname = 'set_vt' and oid <> to_regprocedure(%s)))",
            [list(_NEWER), _OLD_SET_VT],
        ).fetchall()
        for (one,) in newer:
            connection.execute(f"drop function {one} cascade".encode())


# What 1.5 does where it is an extension: its queues become members of it, which takes its owner.
_MEMBERS = """
alter function pgmq.create_non_partitioned(text) rename to _create_plain;
create function pgmq.create_non_partitioned(queue_name text) returns void language plpgsql as $$
begin
    perform pgmq._create_plain(queue_name);
    execute format('alter extension pgmq add table pgmq.%I', 'q_' || queue_name);
    execute format('alter extension pgmq add sequence pgmq.%I', 'q_' || queue_name || '_msg_id_seq');
    execute format('alter extension pgmq add table pgmq.%I', 'a_' || queue_name);
end $$;
alter function pgmq.drop_queue(text) rename to _drop_plain;
create function pgmq.drop_queue(queue_name text) returns boolean language plpgsql as $$
begin
    execute format('alter extension pgmq drop table pgmq.%I', 'q_' || queue_name);
    execute format('alter extension pgmq drop sequence pgmq.%I', 'q_' || queue_name || '_msg_id_seq');
    execute format('alter extension pgmq drop table pgmq.%I', 'a_' || queue_name);
    return pgmq._drop_plain(queue_name);
end $$;
"""


def install_extension(connection: psycopg.Connection[tuple], folder: Path) -> None:
    """Make the reduced pgmq an extension of a database, version 1.5.1; needs PostgreSQL 18 and its superuser.

    The server must be able to read `folder`.
    """
    place = folder / "extension"
    place.mkdir()
    (place / "pgmq.control").write_text("default_version = '1.5.1'\nschema = pgmq\nrelocatable = false\n")
    (place / "pgmq--1.5.1.sql").write_text(reduced_sql() + _MEMBERS)
    connection.execute(f"set extension_control_path = '{folder}:$system'".encode())
    connection.execute("create extension pgmq")
