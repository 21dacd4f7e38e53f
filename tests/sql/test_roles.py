"""What each role may do and what it may not, on a migrated database; see docs/security.md."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from queue_worker import Job, events
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.worker.kit import app_of

ROLES = ("queue_worker", "queue_producer", "queue_reader", "queue_operator")


@pytest.fixture
def engine(db: psycopg.Connection[Any]) -> Engine:
    """A queue with messages waiting, dead and archived."""
    made = Engine(db).create()
    made.fill(5)
    one, two = made.take(2)
    made.settle(done=[one], others=[(two, "dead", 0, "rejected", "card 4242 was refused")])
    return made


def refused(db: psycopg.Connection[Any], role: str, statement: str) -> bool:
    """Whether a role is refused a statement for want of a right."""
    db.execute(f"set role {role}".encode())
    try:
        db.execute(statement.encode())
    except psycopg.errors.InsufficientPrivilege:
        return True
    finally:
        db.execute("reset role")
    return False


NOBODY = [
    "select * from pgmq.q_work", "select * from pgmq.a_work", "update pgmq.q_work set vt = now()",
    "insert into pgmq.q_work (vt, message) values (now(), '{}')", "delete from pgmq.q_work", "truncate pgmq.q_work",
    "select pgmq.create('mine')",
    "select pgmq.drop_queue('work')", "select pgmq.purge_queue('work')", "select pgmq.send('work', '{}')",
    "select * from pgmq.read('work', 1, 1)", "select * from pgmq.pop('work')", "create table queue_worker.mine (n int)",
    "create table queue_worker_data.mine (n int)", "create table pgmq.mine (n int)",
    "delete from queue_worker_data.audit", "update queue_worker_data.queues set paused_at = now()",
    "insert into queue_worker_data.rights (role, name) values ('queue_producer', 'claim')",
    "insert into queue_worker_data.producers select 'work', 'anon', 1, 1, 1, 1",
    "call queue_worker_data.lock_down()", "call queue_worker_data.allow('queue_producer', array['claim'])",
    "select * from queue_worker_data.payment_ledger", "select queue_worker.allow_function('pg_catalog.pg_sleep')",
    "select queue_worker_data.count_sent(null, 'x', 1)",
]  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("statement", NOBODY)
def test_no_role_touches_tables_or_makes_anything(
    engine: Engine, db: psycopg.Connection[Any], role: str, statement: str
) -> None:
    assert refused(db, role, statement)


FORBIDDEN = {
    "queue_worker": [
        "select queue_worker.drop_queue('work')", "select queue_worker.purge('work')",
        "select queue_worker.purge_subject('x')", "select queue_worker.redrive('work', null, 1)",
        "select queue_worker.discard('work', array[1])", "select queue_worker.edit_dead('work', 1, '{}')",
        "select * from queue_worker.messages('work')", "select * from queue_worker.list_dead('work')",
        "select queue_worker.allow_producer('work', 'anon')", "select queue_worker.pause('work')",
        "select * from queue_worker.dead_letters", "select queue_worker.set_rate_limit('work', 1, 1)",
    ],
    "queue_producer": [
        "select * from queue_worker.claim('work', 1, 1)", "select * from queue_worker.messages('work')",
        "select * from queue_worker.message('work', 1)", "select * from queue_worker.queues",
        "select queue_worker.cancel('work', 1)", "select queue_worker.pause('work')",
        "select queue_worker.schedule('s', 'work', '* * * * *', '{}')",
    ],
    "queue_reader": [
        "select payload from queue_worker_data.dead_letters", "select error from queue_worker_data.dead_letters",
        "select error from queue_worker_data.failures", "select detail from queue_worker_data.audit",
        "select payload from queue_worker_data.schedules", "select 1 from queue_worker.dead_letters",
        "select * from queue_worker.messages('work')",
        "select * from queue_worker.message('work', 1)", "select * from queue_worker.list_dead('work')",
        "select * from queue_worker.result('work', 1)", "select queue_worker.pause('work')",
        "select queue_worker.send('work', '{}')", "select * from queue_worker.claim('work', 1, 1)",
    ],
    "queue_operator": [
        "select * from queue_worker.claim('work', 1, 1)", "select queue_worker.once_reserve('k', 'x', 'o', 1, false)",
        "select * from queue_worker.settle('work')",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("role", "statement"), [(role, one) for role, all_ in FORBIDDEN.items() for one in all_])
def test_each_role_is_refused_what_is_not_its_own(
    engine: Engine, db: psycopg.Connection[Any], role: str, statement: str
) -> None:
    name = statement.split("(", maxsplit=1)[0].rpartition(" ")[2]
    if name.startswith("queue_worker.") and "(" in statement:
        known = db.execute("select 1 from pg_proc where oid::regprocedure::text like %s", [f"{name}(%"]).fetchone()
        assert known, f"{name} does not exist, so nothing is proven"
    assert refused(db, role, statement)


def test_what_each_role_is_there_for(engine: Engine, db: psycopg.Connection[Any]) -> None:
    db.execute("set role queue_producer")
    assert db.execute("select queue_worker.send('work', '{}', priority => 3)").fetchone() is not None
    db.execute("reset role; set role queue_reader")
    assert db.execute("select waiting, dead from queue_worker.queues where queue = 'work'").fetchone() == (4, 1)
    assert db.execute("select reason from queue_worker.dead_letters_redacted").fetchone() == ("rejected",)
    for name in (
        "failures_redacted",
        "audit_redacted",
        "schedules_redacted",
        "workers",
        "progress",
        "batches",
        "alerts",
    ):
        db.execute(f"select * from queue_worker.{name}".encode())
    db.execute("reset role; set role queue_operator")
    assert len(db.execute("select * from queue_worker.messages('work')").fetchall()) == 4
    assert db.execute("select error from queue_worker.dead_letters").fetchone() == ("card 4242 was refused",)
    db.execute("select queue_worker.pause('work', 'lunch'), queue_worker.resume('work')")
    db.execute("reset role")
    actors = db.execute("select action, actor from queue_worker.audit where actor = 'queue_operator'").fetchall()
    assert sorted(action for action, _ in actors) == ["pause", "resume"]


# What the dashboard, the worker's own API and Prometheus ask.
LOOKS = (
    "snapshot()", "overview()", "history(60)", "counters()", "queue_status('work')", "list_alerts(10)",
    "list_timings()", "list_counts()",
)  # fmt: skip


@pytest.mark.parametrize("role", ["queue_worker", "queue_reader", "queue_operator"])
@pytest.mark.parametrize("look", LOOKS)
def test_who_may_look_sees_the_numbers(engine: Engine, db: psycopg.Connection[Any], role: str, look: str) -> None:
    db.execute(f"set role {role}".encode())
    assert db.execute(f"select * from queue_worker.{look}".encode()).description


@pytest.fixture
def login(db: psycopg.Connection[Any], dsn: str) -> Iterator[str]:
    """The URL of a login that is a member of queue_worker and nothing else."""
    name = f"worker_{uuid.uuid4().hex[:12]}"
    db.execute(f"create role {name} login in role queue_worker".encode())
    yield make_conninfo(dsn, user=name)
    db.execute(f"drop owned by {name}; drop role {name}".encode())


def test_a_worker_needs_no_more_than_its_role(engine: Engine, login: str, db: psycopg.Connection[Any]) -> None:
    db.execute("create table effects (n bigint not null); grant insert on effects to queue_worker")

    def handle(job: Job[dict[str, Any]]) -> None:
        if job.attempt == 1 and job.payload.get("fail"):
            raise ValueError("once")
        with job.transaction() as transaction:
            transaction.execute("insert into effects values (%s)", [job.msg_id])

    app = app_of(handle, retry=(0,))
    app.schedule("every 1s", queue="work", name="tick", payload={"tick": True})
    engine.send({"fail": True})
    with events.capture() as seen, running(login, app, alert_check_seconds=1):
        wait_until(lambda: engine.value("select count(*) from effects") >= 6, 30)
        wait_until(lambda: engine.rows("select 1 from queue_worker.workers"))
        wait_until(lambda: engine.rows("select 1 from queue_worker.alerts"), 30)
    assert engine.value("select count(*) from queue_worker.failures where kind = 'failed'") == 1
    # Written with a heartbeat and at the end; a right that is missing there stops no message, it is only logged.
    assert engine.rows("select 1 from queue_worker.list_timings() where kind = 'duration'")
    assert [one for one in seen if "permission denied" in str(one)] == []


EVIL = """
create schema evil;
create table evil.stolen (what text);
grant usage on schema evil to public;
grant insert, select on evil.stolen to public;
create function evil.note(what text) returns void language sql security definer as
    $$ insert into evil.stolen values (what) $$;
create function evil.jsonb_typeof(jsonb) returns text language plpgsql as
    $$ begin perform evil.note('jsonb_typeof'); return 'object'; end $$;
create function evil.clock_timestamp() returns timestamptz language plpgsql as
    $$ begin perform evil.note('clock_timestamp'); return 'epoch'; end $$;
create function evil.now() returns timestamptz language plpgsql as
    $$ begin perform evil.note('now'); return 'epoch'; end $$;
create function evil.format(text, variadic "any") returns text language internal as 'text_format';
create function evil.equal(text, text) returns boolean language plpgsql as
    $$ begin perform evil.note('='); return true; end $$;
create operator evil.= (leftarg = text, rightarg = text, procedure = evil.equal);
create function evil.lesseq(timestamptz, timestamptz) returns boolean language plpgsql as
    $$ begin perform evil.note('<='); return true; end $$;
create operator evil.<= (leftarg = timestamptz, rightarg = timestamptz, procedure = evil.lesseq);
create table evil.queues (queue text);
"""


def test_a_schema_that_stands_first_in_the_path_runs_nothing_of_it(engine: Engine, db: psycopg.Connection[Any]) -> None:
    db.execute(EVIL)
    db.execute("create temp table dead_letters (n int)")
    calls = db.execute(
        "select p.oid::regprocedure::text, p.proname, coalesce(p.pronargs, 0), p.pronargdefaults,"
        "       array(select format_type(t, null) from unnest(p.proargtypes) t)"
        " from pg_proc p where p.pronamespace = 'queue_worker'::regnamespace and p.prokind = 'f'"
        " and p.prorettype <> 'trigger'::regtype and p.proname <> 'drop_queue'"
    ).fetchall()
    assert len(calls) > 60
    ran = 0
    for _, name, count, _, kinds in calls:
        arguments = ", ".join(_VALUES.get(kind, "null") + f"::{kind}" for kind in kinds[:count])
        db.execute("set search_path = evil, pg_temp, pg_catalog")
        with contextlib.suppress(psycopg.Error):
            # Some refuse these arguments.
            db.execute(f"select * from queue_worker.{name}({arguments})".encode())
            ran += 1
        db.execute("set search_path = pg_catalog")
    assert ran > 30
    assert db.execute("select * from evil.stolen").fetchall() == []


_VALUES = {
    "text": "'work'", "integer": "1", "bigint": "1", "double precision": "1", "jsonb": """'{"a": 1}'""",
    "boolean": "true", "bigint[]": "'{1}'", "integer[]": "'{1}'", "text[]": "'{work}'",
    "timestamp with time zone[]": "'{2020-01-01}'", "timestamp with time zone": "'2030-01-01'",
    "double precision[]": "'{1}'",
}  # fmt: skip


def test_every_queue_and_archive_has_row_level_security(engine: Engine, db: psycopg.Connection[Any]) -> None:
    db.execute("select queue_worker.create_queue('later', ordered => true)")
    rows = db.execute(
        "select c.relname, c.relrowsecurity, c.relowner::regrole::text from pg_class c"
        " where c.relnamespace = 'pgmq'::regnamespace and c.relkind in ('r', 'p') and c.relname ~ '^[qa]_' order by 1"
    ).fetchall()
    assert rows == [(name, True, "queue_owner") for name in ("a_later", "a_work", "q_later", "q_work")]
