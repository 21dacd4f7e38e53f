"""The rules of Supabase's linter as our own queries: nothing on a migrated database, everything in a naive schema; and
what `doctor --security` finds is mended by the line that it prints."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.own_server import OwnServer
from tests.sql.engine import Engine
from tests.supabase import dashboard

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
create table naive.halfway (id int primary key, owner text, unique (id));
alter table naive.halfway enable row level security;
create policy old_rows on naive.halfway for update to anon using (true) with check (owner = current_user);
create policy readers on naive.halfway for select to anon using (true);
create view naive.seen with (security_invoker = false) as select * from naive.parents;
create function naive.act() returns int language sql security definer as 'select 1';
create procedure naive.do_it() language sql security definer as 'select 1';
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


# Some rules catch two things, where the second is easily missed.
MORE = {
    ("0011 function_search_path_mutable", "naive.do_it()"),
    ("0019 insecure_queue", "pgmq.q_naive"),
    ("0024 permissive_rls_policy", "naive.halfway"),
    ("0028 anon_security_definer_function_executable", "naive.do_it()"),
}


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


def test_nothing_is_found_where_the_roles_of_supabase_are_missing(tmp_path_factory: pytest.TempPathFactory) -> None:
    # Roles belong to the whole server, and that of the other tests has them.
    own = OwnServer(tmp_path_factory.mktemp("own") / "pg")
    try:
        with own.connect() as db:
            assert db.execute("select 1 from pg_roles where rolname in ('anon', 'authenticator')").fetchall() == []
            db.execute("select queue_worker.create_queue('work')")
            assert findings(db) == []
            # And a stranger is still one.
            db.execute("grant select on pgmq.q_work to public")
            ((rule, name, words, fix),) = findings(db)
            assert (rule, name, words) == ("grant", "pgmq.q_work", "public may select it")
            db.execute(fix.encode())
            assert findings(db) == []
    finally:
        own.close()


def test_every_rule_catches_what_it_is_about(queues: Engine, db: psycopg.Connection[Any]) -> None:
    db.execute(NAIVE)
    for _ in range(6):
        db.execute("select * from naive.children").fetchall()
    db.execute("select pg_stat_force_next_flush()")
    caught = lint(db, "naive")
    assert {(rule, name) for rule, name, *_ in caught} >= set(RULES.items()) | MORE
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
    # What, words of a finding, and what each finding names.
    ("grant select on pgmq.q_work to anon", "anon may select it", "pgmq.q_work"),
    ("grant select, delete on pgmq.a_work to authenticated", "authenticated may delete, select it", "pgmq.a_work"),
    ("grant update (message) on pgmq.q_work to public", "public may update it", "pgmq.q_work"),
    ("grant all on sequence pgmq.q_work_msg_id_seq to anon", "select, update, use it", "pgmq.q_work_msg_id_seq"),
    ("grant insert on queue_worker_data.dead_letters to anon", "anon may insert it", "queue_worker_data.dead_letters"),
    ("grant trigger on queue_worker_data.audit to anon", "anon may trigger it", "queue_worker_data.audit"),
    ("grant select on queue_worker.failures to anon", "anon may select it", "queue_worker.failures"),
    ("grant usage on sequence queue_worker_data.schedule_versions to public", "public may use it", "schedule_versions"),
    ("grant execute on function queue_worker.purge to authenticated", "may call it", "queue_worker.purge"),
    ("grant execute on procedure queue_worker_data.lock_down to public", "public may call it", "lock_down"),
    ("grant execute on function queue_worker_data.send to anon", "anon may call it", "queue_worker_data.send"),
    ("grant usage on schema queue_worker_data to anon", "anon may use it", "schema queue_worker_data"),
    ("grant create on schema queue_worker to public", "public may create in it", "schema queue_worker"),
    ("grant select on pgmq.q_work to queue_reader", "queue_reader may select it, which", "pgmq.q_work"),
    ("grant select on queue_worker_data.dead_letters to queue_reader", "queue_reader may select it", "dead_letters"),
    ("grant select (payload) on queue_worker_data.dead_letters to queue_reader", "(column payload)", "dead_letters"),
    ("grant execute on function queue_worker.purge to queue_worker", "queue_worker may call it", "queue_worker.purge"),
    ("grant delete on queue_worker_data.audit to service_role", "service_role may delete it", "audit"),
    ("alter table pgmq.q_work disable row level security", "row level security is off", "pgmq.q_work"),
    ("alter table pgmq.a_work disable row level security", "row level security is off", "pgmq.a_work"),
    ("alter table queue_worker_data.audit disable row level security", "is off", "queue_worker_data.audit"),
    ("create table queue_worker_data.mine (id int primary key)", "has row level security off", "mine"),
    ("create table queue_worker_data.mine (id int)", "has no primary key", "queue_worker_data.mine"),
    ("drop policy queue_owner on pgmq.a_work", "no policy says", "pgmq.a_work"),
    ("create policy theirs on pgmq.q_work to authenticated using (true)", "write everything", "pgmq.q_work"),
    ("alter function queue_worker.pause security definer", "rights of its owner", "queue_worker.pause"),
    ("alter function queue_worker_data.claim reset search_path", "no search_path", "queue_worker_data.claim"),
    ("alter function queue_worker_data.claim set search_path = public", "in public", "queue_worker_data.claim"),
    ("alter function queue_worker_data.claim owner to postgres", "belongs to postgres", "queue_worker_data.claim"),
    ("alter table queue_worker_data.audit owner to postgres", "belongs to postgres", "queue_worker_data.audit"),
    ("alter view queue_worker.failures owner to postgres", "belongs to postgres", "queue_worker.failures"),
    ("alter sequence queue_worker_data.schedule_versions owner to postgres", "belongs to", "schedule_versions"),
    ("alter schema queue_worker owner to postgres", "belongs to postgres", "queue_worker"),
    ("alter table pgmq.a_work owner to postgres", "belongs to postgres, not to queue_owner", "pgmq.a_work"),
    ("alter view queue_worker.failures set (security_invoker = false)", "rights of its owner", "queue_worker.failures"),
    ("alter role authenticator in database THIS set pgrst.db_schemas = 'public, queue_worker, pgmq'", "API", "pgmq"),
    ("alter database THIS set pgrst.db_schemas = 'queue_worker,queue_worker_data'", "API", "queue_worker_data"),
]


def look_again(db: psycopg.Connection[Any], found: list[tuple[str, str, str, str]]) -> None:
    """Run what is printed, as it is printed; then nothing is found."""
    for *_, fix in found:
        db.execute(fix.encode())
    assert findings(db) == []


@pytest.mark.parametrize(("act", "words", "about"), BY_HAND, ids=[act for act, *_ in BY_HAND])
def test_what_was_changed_by_hand_is_found_and_mended_by_the_line_that_is_printed(
    queues: Engine, db: psycopg.Connection[Any], act: str, words: str, about: str
) -> None:
    (name,) = db.execute("select current_database()").fetchone()  # type: ignore[misc]
    db.execute(act.replace("THIS", name).encode())
    found = findings(db)
    assert any(words in finding for _, _, finding, _ in found), found
    assert all(about in one for _, one, _, _ in found), found
    look_again(db, found)
    # And all is as it should be otherwise, and for the queue itself.
    assert db.execute("select finding from queue_worker.diagnose()").fetchall() == []
    assert len(queues.take(1)) == 1


@pytest.mark.parametrize("role", ["queue_operator", "queue_owner"])
def test_a_stranger_who_is_a_member_of_a_role_of_ours_is_found(
    queues: Engine, db: psycopg.Connection[Any], role: str
) -> None:
    # Roles belong to the whole server: nobody else must see this.
    with db.transaction(force_rollback=True):
        db.execute("create role middle nologin")
        db.execute(f"grant {role} to middle; grant middle to anon; grant {role} to authenticated".encode())
        found = sorted(findings(db))
        assert found == [
            ("member", "anon", f"may act as {role}", "revoke middle from anon;"),
            ("member", "authenticated", f"may act as {role}", f"revoke {role} from authenticated;"),
        ]
        look_again(db, found)


def test_a_key_that_names_a_role_of_ours_is_no_finding(queues: Engine, db: psycopg.Connection[Any]) -> None:
    with db.transaction(force_rollback=True):
        db.execute("grant queue_worker to authenticator")
        assert findings(db) == []


def test_what_the_dashboard_opens_is_found_and_the_service_key_keeps_it(
    queues: Engine, db: psycopg.Connection[Any]
) -> None:
    dashboard.expose_queues(db)
    found = findings(db)
    assert {one for _, one, *_ in found} == {
        "pgmq.q_work_msg_id_seq", "pgmq.q_ordered_msg_id_seq", "schema pgmq_public",
    }  # fmt: skip
    look_again(db, found)
    # Also for a queue that is made after it, to which the dashboard's default privileges apply.
    db.execute("select queue_worker.create_queue('later')")
    assert findings(db) == []
    db.execute("set role service_role")
    db.execute("select pgmq_public.send('later', '{}')")
    db.execute("set role anon")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        db.execute("select pgmq_public.send('later', '{}')")


def test_what_the_api_says_that_it_shows_counts_where_the_database_does_not_know(
    queues: Engine, db: psycopg.Connection[Any]
) -> None:
    def asked(*schemas: str) -> list[tuple[str, str, str]]:
        return db.execute(
            "select rule, object, fix from queue_worker.security(exposed => %s)", [list(schemas)]
        ).fetchall()

    assert asked("public", "queue_worker") == []
    ((rule, name, fix),) = asked("public", "pgmq", "queue_worker")
    assert (rule, name) == ("exposed", "schema pgmq")
    assert fix.startswith("Project Settings > Data API > Exposed schemas: remove pgmq")
    assert fix.endswith("(self-hosted: PGRST_DB_SCHEMAS=public,queue_worker)")
    dashboard.expose_queues(db)
    assert ("exposed", "schema pgmq_public") not in [one[:2] for one in asked("public", "queue_worker")]
    assert ("exposed", "schema pgmq_public") in [one[:2] for one in asked("public", "pgmq_public")]


def test_queues_and_schemas_of_others_are_not_judged(queues: Engine, db: psycopg.Connection[Any]) -> None:
    db.execute("select pgmq.create('theirs')")
    db.execute("create schema theirs; create table theirs.open (n int); grant select on theirs.open to anon")
    db.execute("create function theirs.act() returns int language sql security definer as 'select 1'")
    assert findings(db) == []
    # As Supabase documents it for browsers that read a queue.
    db.execute("alter table pgmq.q_theirs enable row level security")
    db.execute("create policy all_of_it on pgmq.q_theirs to authenticated using (true)")
    db.execute("grant select, update on pgmq.q_theirs to authenticated")
    assert findings(db) == []


def test_of_two_same_indexes_the_one_of_a_constraint_stays(db: psycopg.Connection[Any]) -> None:
    db.execute("create schema naive; create table naive.one (n int not null)")
    db.execute("create unique index first on naive.one (n); alter table naive.one add constraint later primary key (n)")
    ((_, _, words, fix),) = [one for one in lint(db, "naive") if one[0].startswith("0009")]
    assert (words, fix) == ("is the same as naive.later", "drop index naive.first;")


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
