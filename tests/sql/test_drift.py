"""What doctor finds where something is not as the migrations made it, and that the line that it prints mends it."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from queue_worker.migrate import sql_dir
from queue_worker.migrate_files import read_migrations
from tests.sql.engine import Engine
from tests.supabase import dashboard

Row = tuple[str, str | None, str, str]


def found(db: psycopg.Connection[Any]) -> list[Row]:
    return db.execute("select subject, queue, finding, fix from queue_worker.diagnose()").fetchall()


def look_again(db: psycopg.Connection[Any], before: list[Row]) -> None:
    """Run what is printed, as it is printed; then nothing is found."""
    for *_, fix in before:
        db.execute(fix.encode())
    assert found(db) == []


def rights(db: psycopg.Connection[Any]) -> list[Any]:
    """Owner and rights of every function, in no order of their own."""
    return db.execute(
        "select p.oid::regprocedure::text, p.proowner::regrole::text, array(select a::text from unnest(p.proacl) a"
        " order by 1) from pg_proc p where p.pronamespace in ('queue_worker'::regnamespace,"
        " 'queue_worker_data'::regnamespace) order by 1"
    ).fetchall()


def works(engine: Engine) -> None:
    """A message is sent, claimed and settled by a worker's role."""
    engine.rows("set role queue_worker")
    engine.rows("select queue_worker.send('work', '{}')")
    assert engine.settle(done=engine.take(1)) == {}
    engine.rows("reset role")
    assert engine.count("archive") == 1


FUNCTIONS = [
    ("create or replace function queue_worker.sign_off(worker text) returns void language sql as 'select null'",
     "function queue_worker.sign_off(text) was edited in the database"),
    ("drop function queue_worker.sign_off", "function queue_worker.sign_off(text) is missing"),
    ("""drop function queue_worker_data.sign_off(text);
     create function queue_worker_data.sign_off(worker text) returns int language sql as 'select 1'""",
     "function queue_worker_data.sign_off(text) was edited in the database"),
    ("create or replace procedure queue_worker_data.open_producers() language sql as 'select null'",
     "function queue_worker_data.open_producers() was edited in the database"),
    ("alter function queue_worker.extend security definer", "was edited in the database"),
    ("alter function queue_worker.extend set search_path = public", "was edited in the database"),
    ("alter function queue_worker.extend rename to stretch", "was made by no migration"),
    ("create function queue_worker.mine() returns int language sql as 'select 1'",
     "function queue_worker.mine() was made by no migration"),
    ("create function queue_worker.send(queue text) returns int language sql as 'select 1'",
     "function queue_worker.send(text) was made by no migration"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "words"), FUNCTIONS, ids=[act[:70] for act, _ in FUNCTIONS])
def test_a_function_that_is_not_as_it_was_made_is_found_and_restored(
    engine: Engine, db: psycopg.Connection[Any], act: str, words: str
) -> None:
    before = rights(db)
    db.execute(act.encode())
    findings = found(db)
    assert any(words in finding for _, _, finding, _ in findings), findings
    assert {subject for subject, *_ in findings} == {"schema"}
    look_again(db, findings)
    assert rights(db) == before
    works(engine)


RIGHTS = [
    ("revoke execute on function queue_worker.claim from queue_worker", "queue_worker may not call queue_worker.claim"),
    ("revoke execute on function queue_worker_data.settle from service_role", "role service_role may not call"),
    ("revoke usage on schema queue_worker_data from queue_worker", "role queue_worker may not use schema"),
    ("revoke select on queue_worker.queues from queue_reader", "role queue_reader may not read queue_worker.queues"),
    ("revoke select (reason) on queue_worker_data.dead_letters from queue_reader", "role queue_reader may not read"),
    ("drop policy queue_reader on queue_worker_data.queues", "role queue_reader may not read queue_worker_data.queues"),
    ("grant execute on function queue_worker.purge to queue_worker", "queue_worker may call it, which it does"),
    ("grant select on queue_worker_data.dead_letters to queue_reader", "queue_reader may select it"),
    ("grant update on pgmq.q_work to queue_operator", "pgmq.q_work: queue_operator may update it"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "words"), RIGHTS, ids=[act for act, _ in RIGHTS])
def test_rights_that_are_not_as_they_were_made_are_found_and_mended(
    engine: Engine, db: psycopg.Connection[Any], act: str, words: str
) -> None:
    before = rights(db)
    db.execute(act.encode())
    findings = found(db)
    assert any(words in finding for _, _, finding, _ in findings), findings
    look_again(db, findings)
    assert rights(db) == before
    works(engine)


@pytest.mark.parametrize("role", ["authenticated", "queue_reader", "service_role"])
def test_what_a_permit_gives_is_no_finding(engine: Engine, db: psycopg.Connection[Any], role: str) -> None:
    db.execute("select queue_worker.allow_producer('work', %s)", [role])
    assert found(db) == []
    assert db.execute("select * from queue_worker.security()").fetchall() == []
    db.execute("select queue_worker.disallow_producer('work', %s)", [role])
    assert found(db) == []
    assert db.execute("select * from queue_worker.security()").fetchall() == []


def test_a_login_of_ones_own_that_was_given_a_function_is_no_finding(
    engine: Engine, db: psycopg.Connection[Any]
) -> None:
    with db.transaction(force_rollback=True):
        db.execute("create role shop; grant usage on schema queue_worker to shop")
        db.execute("grant execute on function queue_worker.send, queue_worker_data.send to shop")
        assert found(db) == []


def test_only_what_the_migrations_made_can_be_restored_and_only_by_whoever_migrates(
    engine: Engine, db: psycopg.Connection[Any]
) -> None:
    with pytest.raises(psycopg.errors.UndefinedFunction, match="the migrations made no function"):
        db.execute("call queue_worker_data.restore('pg_catalog.now()')")
    for role in ("queue_worker", "queue_operator", "service_role", "anon"):
        db.execute(f"set role {role}".encode())
        for statement in (
            "call queue_worker_data.restore('queue_worker.sign_off(text)')",
            "call queue_worker_data.remember()",
            "select * from queue_worker_data.made",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                db.execute(statement.encode())
        db.execute("reset role")


def test_the_last_migration_that_makes_a_function_remembers_it() -> None:
    making = [one for one in read_migrations(sql_dir()) if "function queue_worker" in one.text and one.version > 29]
    assert making
    for one in making:
        assert one.text.rstrip().endswith("call queue_worker_data.remember();"), one.file


def test_a_queue_of_the_dashboard_is_found_until_it_is_taken_over(db: psycopg.Connection[Any]) -> None:
    dashboard.create_queue(db, "email")
    db.execute("select pgmq.send('email', '{}')")
    ((subject, queue, finding, fix),) = findings = found(db)
    assert (subject, queue, fix) == ("queue", "email", "select queue_worker.create_queue('email');")
    assert finding == "belongs to postgres, with row level security and no policy: a worker would see it as empty"
    look_again(db, findings)
    assert len(Engine(db, "email").take(1)) == 1


def test_a_queue_of_somebody_else_who_says_whom_it_is_for_is_no_finding(db: psycopg.Connection[Any]) -> None:
    dashboard.create_queue(db, "theirs")
    db.execute("create policy mine on pgmq.q_theirs to postgres using (true)")
    db.execute("select pgmq.create('plain')")
    assert found(db) == []


@pytest.mark.parametrize("role", ["queue_worker", "queue_reader", "queue_operator", "service_role"])
def test_each_role_that_may_look_sees_the_same(engine: Engine, db: psycopg.Connection[Any], role: str) -> None:
    db.execute("drop function queue_worker.sign_off; grant update on pgmq.q_work to queue_operator")
    dashboard.create_queue(db, "theirs")
    seen = found(db)
    assert len(seen) == 3
    db.execute(f"set role {role}".encode())
    assert found(db) == seen
    assert dict(db.execute("select * from queue_worker.about(now())").fetchall())["role"] == role


@pytest.mark.parametrize(
    ("schemas", "words"),
    [
        ("public, queue_worker", "schema queue_worker is exposed (public, queue_worker)"),
        ("public", "schema queue_worker is not exposed: only a worker over REST needs that (public)"),
        (None, "the database does not say whether schema queue_worker is exposed"),
    ],
)
def test_what_the_api_shows_is_told(db: psycopg.Connection[Any], schemas: str | None, words: str) -> None:
    (name,) = db.execute("select current_database()").fetchone()  # type: ignore[misc]
    if schemas:
        db.execute(f"alter role authenticator in database {name} set pgrst.db_schemas = '{schemas}'".encode())
    assert dict(db.execute("select * from queue_worker.about()").fetchall())["api"] == words
    if schemas:
        db.execute(f"alter role authenticator in database {name} reset all".encode())
    asked = db.execute(
        "select value from queue_worker.about(exposed => '{queue_worker}') where name = 'api'"
    ).fetchone()
    assert asked == ("schema queue_worker is exposed (queue_worker)",)
