"""What a role may do that owns nothing of ours."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg
import pytest

from tests.sql.engine import Engine


@pytest.fixture
def guest(engine: Engine) -> Iterator[str]:
    """A role without any right; roles belong to the whole server, so its name is its own."""
    name = f"guest_{uuid.uuid4().hex[:12]}"
    engine.rows(f"create role {name}")
    yield name
    engine.rows("reset role")
    engine.rows(f"drop owned by {name} cascade")
    engine.rows(f"drop role {name}")


def test_a_writer_without_any_right_on_our_schemas_fires_the_trigger(engine: Engine, guest: str) -> None:
    engine.rows("create table orders (id int)")
    engine.rows("create trigger t after insert on orders for each row execute function queue_worker.send_row('work')")
    engine.rows(f"grant insert on orders to {guest}")
    engine.rows(f"set role {guest}")
    engine.rows("insert into orders values (5)")
    engine.rows("reset role")
    assert engine.rows("select message -> 'id' from pgmq.q_work") == [(5,)]


def test_a_role_with_usage_alone_cannot_put_the_trigger_on_a_table_of_its_own(engine: Engine, guest: str) -> None:
    engine.rows(f"create schema own authorization {guest}")
    engine.rows(f"grant usage on schema queue_worker to {guest}")
    engine.rows(f"set role {guest}")
    engine.rows("create table own.bait (id int)")
    trigger = "create trigger t after insert on own.bait for each row execute function queue_worker.send_row('work')"
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="send_row"):
        engine.rows(trigger)
    engine.rows("reset role")
    engine.rows(f"grant execute on function queue_worker.send_row() to {guest}")
    engine.rows(f"set role {guest}")
    engine.rows(trigger)


def test_no_function_may_be_called_without_a_grant(engine: Engine, guest: str) -> None:
    open_ones = engine.rows(
        "select p.oid::regprocedure::text from pg_proc p where p.pronamespace in"
        " ('queue_worker'::regnamespace, 'queue_worker_data'::regnamespace)"
        " and has_function_privilege(%s, p.oid, 'execute')",
        guest,
    )
    assert open_ones == []


def test_a_queue_that_is_not_ours_does_not_hide_the_others(engine: Engine) -> None:
    engine.rows("select pgmq.create('foreign')")
    engine.fill(2)
    assert engine.rows(
        "select queue, waiting, delayed, running, dead, oldest_seconds is null from queue_worker.queues"
    ) == [
        ("foreign", None, None, None, None, True),
        ("work", 2, 0, 0, 0, False),
    ]
