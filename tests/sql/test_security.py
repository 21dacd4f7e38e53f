"""The rules of Supabase's linter as our own queries: nothing on a migrated database, everything in a naive schema; and
what `doctor --security` finds is mended by the line that it prints."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from queue_worker import migrate
from tests.sql.engine import Engine

# Companion SQL as one writes it in a hurry; each line is what one rule is about.
NAIVE = """
create schema naive;
grant usage on schema naive, pgmq to anon, authenticated;
create table naive.parents (id int primary key);
create table naive.children (id int primary key, parent_id int references naive.parents, other int);
create index one on naive.children (other);
create index same on naive.children (other);
alter table naive.children enable row level security;
create table naive.keyless (n int);
create table naive.open (id int primary key, api_key text);
grant select on naive.open to anon;
create table naive.forgotten (id int primary key);
create policy mine on naive.forgotten using (id > 0);
create table naive.generous (id int primary key);
alter table naive.generous enable row level security;
create policy everything on naive.generous for update to authenticated using (true);
create view naive.seen with (security_invoker = false) as select * from naive.parents;
create function naive.act() returns int language sql security definer as 'select 1';
create extension vector schema naive;
create table pgmq.q_naive (msg_id bigint primary key, message jsonb);
create table pgmq.a_naive (msg_id bigint primary key, message jsonb);
grant select on pgmq.q_naive, pgmq.a_naive to authenticated;
"""

RULES = {
    "0001 unindexed_foreign_keys": "naive.children",
    "0004 no_primary_key": "naive.keyless",
    "0005 unused_index": "naive.one",
    "0007 policy_exists_rls_disabled": "naive.forgotten",
    "0008 rls_enabled_no_policy": "naive.children",
    "0009 duplicate_index": "naive.same",
    "0010 security_definer_view": "naive.seen",
    "0011 function_search_path_mutable": "naive.act()",
    "0013 rls_disabled": "naive.keyless",
    "0014 extension_in_public": "vector",
    "0019 insecure_queue": "pgmq.a_naive",
    "0023 sensitive_columns_exposed": "naive.open",
    "0024 permissive_rls_policy": "naive.generous",
    "0028 anon_security_definer_function_executable": "naive.act()",
    "0029 authenticated_security_definer_function_executable": "naive.act()",
}


def findings(db: psycopg.Connection[Any]) -> list[tuple[str, str, str, str]]:
    return db.execute("select rule, object, finding, fix from queue_worker.security()").fetchall()


def lint(db: psycopg.Connection[Any], schema: str) -> list[tuple[str, str, str, str]]:
    return db.execute(
        "select * from queue_worker_data.lint_tables(%(s)s, %(s)s)"
        " union all select * from queue_worker_data.lint_code(%(s)s, %(s)s)"
        " union all select * from queue_worker_data.lint_indexes(%(s)s, 5)",
        {"s": [schema]},
    ).fetchall()


@pytest.fixture
def queues(db: psycopg.Connection[Any]) -> Engine:
    """Queues of each kind, with rows wherever ours can have some."""
    engine = Engine(db).create()
    db.execute("select queue_worker.create_queue('ordered', ordered => true)")
    engine.fill(3)
    engine.settle(done=engine.take(2))
    return engine


def test_nothing_is_found_on_a_migrated_database(queues: Engine, db: psycopg.Connection[Any]) -> None:
    assert findings(db) == []
    assert lint(db, "queue_worker") == []
    # Indexes that this test has not used are none that nobody uses; everything else holds of the tables too.
    assert [one for one in lint(db, "queue_worker_data") if not one[0].startswith("0005")] == []


def test_nothing_is_found_where_the_roles_of_supabase_are_missing(empty_dsn: str) -> None:
    migrate.up(empty_dsn)
    with psycopg.connect(empty_dsn, autocommit=True) as db:
        db.execute("select queue_worker.create_queue('work')")
        assert findings(db) == []


def test_every_rule_catches_what_it_is_about(queues: Engine, db: psycopg.Connection[Any]) -> None:
    db.execute(NAIVE)
    for _ in range(6):
        db.execute("select * from naive.children").fetchall()
    db.execute("select pg_stat_force_next_flush()")
    caught = lint(db, "naive")
    assert {(rule, name) for rule, name, *_ in caught} >= set(RULES.items())
    assert {rule for rule, *_ in caught} == RULES.keys()


def test_what_is_printed_mends_the_naive_schema(queues: Engine, db: psycopg.Connection[Any]) -> None:
    db.execute(NAIVE)
    rounds = 0
    while caught := [one for one in lint(db, "naive") if not one[0].startswith("0005")]:
        rounds += 1
        # Row level security that is switched on wants its policy: one thing leads to the next.
        assert rounds < 4, caught
        for fix in {one[3] for one in caught}:
            db.execute(fix.encode())
    assert rounds > 0


BY_HAND = [
    ("grant select on pgmq.q_work to anon", "shown", "pgmq.q_work"),
    ("grant select, delete on pgmq.a_work to authenticated", "delete, select", "pgmq.a_work"),
    ("grant update (message) on pgmq.q_work to public", "update", "pgmq.q_work"),
    ("grant insert on queue_worker_data.dead_letters to anon", "insert", "queue_worker_data.dead_letters"),
    ("grant select on queue_worker.failures to anon", "select", "queue_worker.failures"),
    ("grant execute on function queue_worker.purge to authenticated", "may call it", "queue_worker.purge"),
    ("grant execute on procedure queue_worker_data.lock_down to public", "may call it", "lock_down"),
    ("grant usage on schema queue_worker_data to anon", "may use it", "schema queue_worker_data"),
    ("alter table pgmq.q_work disable row level security", "row level security is off", "pgmq.q_work"),
    ("alter table queue_worker_data.audit disable row level security", "is off", "queue_worker_data.audit"),
    ("drop policy queue_owner on pgmq.a_work", "no policy says", "pgmq.a_work"),
    ("create policy theirs on pgmq.q_work to authenticated using (true)", "write everything", "pgmq.q_work"),
    ("alter function queue_worker.pause security definer", "rights of its owner", "queue_worker.pause"),
    ("alter function queue_worker_data.claim reset search_path", "no search_path", "queue_worker_data.claim"),
    ("alter function queue_worker_data.claim owner to postgres", "belongs to postgres", "queue_worker_data.claim"),
    ("alter view queue_worker.failures set (security_invoker = false)", "rights of its owner", "queue_worker.failures"),
    ("alter role authenticator in database THIS set pgrst.db_schemas = 'public, queue_worker, pgmq'", "API", "pgmq"),
]


@pytest.mark.parametrize(("act", "words", "about"), BY_HAND, ids=[act for act, *_ in BY_HAND])
def test_what_was_changed_by_hand_is_found_and_mended_by_the_line_that_is_printed(
    queues: Engine, db: psycopg.Connection[Any], act: str, words: str, about: str
) -> None:
    (name,) = db.execute("select current_database()").fetchone()  # type: ignore[misc]
    db.execute(act.replace("THIS", name).encode())
    found = findings(db)
    assert found
    if words != "shown":
        assert any(words in finding for _, _, finding, _ in found), found
    assert all(about in one for _, one, _, _ in found), found
    for *_, fix in found:
        db.execute(fix.encode())
    assert findings(db) == []
    # And all is as it should be for the queue itself.
    assert len(queues.take(1)) == 1


def test_a_producer_that_was_allowed_is_no_finding(queues: Engine, db: psycopg.Connection[Any]) -> None:
    db.execute("select queue_worker.allow_producer('work', 'authenticated')")
    assert findings(db) == []
    db.execute("select queue_worker.disallow_producer('work', 'authenticated')")
    assert findings(db) == []


@pytest.mark.parametrize("role", ["queue_worker", "queue_reader", "queue_operator", "service_role"])
def test_each_role_that_may_look_sees_the_same(queues: Engine, db: psycopg.Connection[Any], role: str) -> None:
    db.execute("grant select on pgmq.q_work to anon")
    seen = findings(db)
    db.execute(f"set role {role}".encode())
    assert findings(db) == seen != []
