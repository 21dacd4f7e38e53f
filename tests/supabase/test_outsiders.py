"""Those who have a key for browsers, or are signed in: every function and every table is refused, and nothing moves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest

from tests.sql.engine import Engine
from tests.supabase import dashboard
from tests.supabase.project import Project, jwt, project

pytestmark = pytest.mark.full

OURS = "queue_worker,queue_worker_data"
CARELESS = "queue_worker,queue_worker_data,pgmq,pgmq_public"

# Values that fit the parameters, so that a call fails for want of a right and not of an argument.
VALUES = {
    "boolean": True, "integer": 1, "bigint": 1, "double precision": 1.0, "numeric": 1, "jsonb": {"n": 1},
    "json": {"n": 1}, "text": "work", "timestamp with time zone": "2020-01-01T00:00:00Z", "interval": "1 day",
    "uuid": "11111111-2222-3333-4444-555555555555",
}  # fmt: skip


@pytest.fixture
def engine(db: psycopg.Connection[Any]) -> Engine:
    """A queue with messages waiting, running, dead and archived."""
    made = Engine(db).create()
    made.fill(6)
    one, two, *_ = made.take(3)
    made.settle(done=[one], others=[(two, "dead", 0, "rejected", "no")])
    return made


def state(db: psycopg.Connection[Any]) -> list[Any]:
    """Every row of ours and of the queues, and nothing that a look changes."""
    tables = db.execute(
        "select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where c.relkind = 'r' and n.nspname in ('queue_worker_data', 'pgmq') order by 1"
    ).fetchall()
    return [(name, db.execute(f"select t::text from {name} t order by 1".encode()).fetchall()) for (name,) in tables]


def functions(db: psycopg.Connection[Any], schemas: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(schema, name, arguments) of every function that PostgREST could call."""
    rows = db.execute(
        "select n.nspname, p.proname, coalesce(p.proargnames[1:p.pronargs], '{}'),"
        "       array(select format_type(t, null) from unnest(p.proargtypes) t)"
        " from pg_proc p join pg_namespace n on n.oid = p.pronamespace"
        " where n.nspname = any (string_to_array(%s, ',')) and p.prokind = 'f' and p.prorettype <> 'trigger'::regtype",
        [schemas],
    ).fetchall()
    return [
        (
            schema,
            name,
            {
                key: [VALUES.get(kind[:-2], "x")] if kind.endswith("[]") else VALUES.get(kind, "work")
                for key, kind in zip(names, kinds, strict=True)
            },
        )
        for schema, name, names, kinds in rows
    ]


def relations(db: psycopg.Connection[Any], schemas: str) -> list[tuple[str, str, str]]:
    """(schema, name, a column that can be written) of every table and view."""
    return db.execute(
        "select n.nspname, c.relname, (select a.attname from pg_attribute a where a.attrelid = c.oid and a.attnum > 0"
        " and a.attgenerated = '' and a.attname not in ('columns', 'is') order by a.attnum desc limit 1)"
        " from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = any (string_to_array(%s, ',')) and c.relkind in ('r', 'p', 'v')",
        [schemas],
    ).fetchall()


@pytest.fixture(params=[OURS, CARELESS], ids=["as documented", "everything exposed"])
def exposed(
    request: pytest.FixtureRequest, dsn: str, db: psycopg.Connection[Any], engine: Engine
) -> Iterator[tuple[Project, str]]:
    """A project that shows more than it should; the second as somebody does who clicked `expose queues` besides."""
    if request.param == CARELESS:
        dashboard.expose_queues(db)
        db.execute("grant usage on schema queue_worker, queue_worker_data to anon, authenticated")
    with project(dsn, schemas=request.param) as made:
        yield made, request.param


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_every_function_and_table_is_refused_and_nothing_moves(
    exposed: tuple[Project, str], db: psycopg.Connection[Any], role: str
) -> None:
    made, schemas = exposed
    key = jwt(role, sub="11111111-1111-1111-1111-111111111111")
    before = state(db)
    let_through: set[str] = set()
    tried = 0
    with httpx.Client(base_url=f"{made.url}/rest/v1", headers={"apikey": key, "Authorization": f"Bearer {key}"}) as api:
        for schema, name, arguments in functions(db, schemas):
            tried += 1
            answer = api.post(f"/rpc/{name}", json=arguments, headers={"Content-Profile": schema})
            if answer.status_code < 400:
                let_through.add(f"{schema}.{name}")
        for schema, name, column in relations(db, schemas):
            profile = {"Accept-Profile": schema, "Content-Profile": schema, "Prefer": "return=minimal"}
            for answer in (
                api.get(f"/{name}", headers=profile),
                api.post(f"/{name}", json={}, headers=profile),
                api.patch(f"/{name}", params={column: "is.null"}, json={column: None}, headers=profile),
                api.delete(f"/{name}", params={column: "is.null"}, headers=profile),
            ):
                tried += 1
                # The others: a view, or a column of one, that nobody can write into, whoever asks.
                refused = answer.status_code in (401, 403, 404) or answer.json()["code"] in ("55000", "0A000", "428C9")
                assert refused, (schema, name, answer.request.method, answer.text)
    assert tried > 150
    # Some functions of pgmq look at their arguments alone, and may: what counts is that nothing moved.
    assert {name for name in let_through if not name.startswith("pgmq.")} == set()
    assert state(db) == before


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_what_the_dashboard_exposes_is_refused_for_our_queues(
    dsn: str, db: psycopg.Connection[Any], engine: Engine, role: str
) -> None:
    """Made before and after: Supabase's default privileges open what comes later."""
    dashboard.expose_queues(db)
    db.execute("select queue_worker.create_queue('later')")
    db.execute("select pgmq.send('later', '{}')")
    before = state(db)
    with project(dsn, schemas="pgmq_public") as made:
        headers = {"apikey": jwt(role), "Authorization": f"Bearer {jwt(role)}"}
        with httpx.Client(base_url=f"{made.url}/rest/v1/rpc", headers=headers) as api:
            for queue in ("work", "later"):
                name = {"queue_name": queue}
                for call, arguments in (
                    ("send", {"message": {}}), ("send_batch", {"messages": [{}]}), ("pop", {}),
                    ("read", {"sleep_seconds": 5, "n": 5}), ("archive", {"message_id": 4}),
                    ("delete", {"message_id": 4}),
                ):  # fmt: skip
                    answer = api.post(f"/{call}", json=name | arguments)
                    assert answer.status_code in (401, 403), (call, answer.text)
                    assert answer.json()["code"] == "42501"
    assert state(db) == before
