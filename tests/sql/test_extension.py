"""pgmq 1.5 as the extension that it is on hosted Supabase, where queues become members of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker import migrate
from tests import pgmq_151
from tests.blackbox.program import Program
from tests.supabase.postgrest import prepare_roles

Db = psycopg.Connection[Any]

MEMBERS = """
    select c.relname from pg_depend d join pg_class c on c.oid = d.objid
    where d.classid = 'pg_class'::regclass and d.deptype = 'e' and c.relname ~ '^[qa]_' order by 1
"""


@pytest.fixture
def project(empty_dsn: str) -> Iterator[Db]:
    """A database with the extension and the schema."""
    with tempfile.TemporaryDirectory() as folder, psycopg.connect(empty_dsn, autocommit=True) as db:
        Path(folder).chmod(0o755)  # the server may be another user
        prepare_roles(empty_dsn)
        pgmq_151.install_extension(db, Path(folder))
        migrate.up(empty_dsn)
        yield db


def test_a_queue_is_made_used_and_dropped_by_who_does_not_own_the_extension(project: Db, empty_dsn: str) -> None:
    program = Program(DATABASE_URL=empty_dsn)
    program.ok("create", "email")
    assert project.execute(MEMBERS).fetchall() == []
    owners = "select distinct pg_get_userbyid(relowner) from pg_class where relname in ('q_email', 'a_email')"
    assert project.execute(owners).fetchall() == [("queue_owner",)]
    # As pgmq itself makes them.
    project.execute("select pgmq.create('plain')")
    shape = """
        select array_agg(format('%%s %%s %%s %%s %%s', attname, atttypid::regtype, attnotnull, attidentity,
            pg_get_expr(adbin, adrelid)) order by attnum)
        from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
        where attrelid = %s::regclass and attnum > 0"""
    for kind in "qa":
        ours, theirs = (project.execute(shape, [f"pgmq.{kind}_{name}"]).fetchone() for name in ("email", "plain"))
        assert ours is not None
        assert sorted(ours[0]) == sorted(theirs[0])
    assert project.execute("select message from pgmq.q_email").fetchall() == []
    project.execute("select pgmq.send('email', '{\"n\": 1}')")
    assert project.execute("select (pgmq.read('email', 30, 1)).message").fetchone() == ({"n": 1},)
    assert project.execute("select pgmq.archive('email', 1)").fetchone() == (True,)
    program.ok("drop", "email", "--yes")
    assert project.execute("select count(*) from pgmq.list_queues() where queue_name = 'email'").fetchone() == (0,)
    program.ok("create", "email")


def test_a_queue_of_the_dashboard_is_taken_over_and_dropped_by_who_owns_the_extension(
    project: Db, empty_dsn: str
) -> None:
    project.execute("select pgmq.create('email')")
    project.execute("select pgmq.send('email', '{}')")
    program = Program(DATABASE_URL=empty_dsn)
    program.ok("create", "email")
    assert project.execute(MEMBERS).fetchall() == [("a_email",), ("q_email",), ("q_email_msg_id_seq",)]
    project.execute("create role ann; grant queue_operator to ann; set role ann")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="members of the extension pgmq") as refused:
        project.execute("select queue_worker.drop_queue('email')")
    assert "alter extension pgmq drop table pgmq.q_email;" in str(refused.value.diag.message_hint)
    project.execute("reset role; drop role ann")
    program.ok("drop", "email", "--yes")
    assert project.execute("select to_regclass('pgmq.q_email')").fetchone() == (None,)
    assert project.execute(MEMBERS).fetchall() == []


def test_a_worker_makes_its_queues(project: Db, empty_dsn: str) -> None:
    Program(DATABASE_URL=empty_dsn).ok("start", "-q", "email", "--burst")
    assert project.execute("select queue from queue_worker.queues").fetchall() == [("email",)]
