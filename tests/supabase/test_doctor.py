"""What only a look over REST can tell: the key, what the API shows, and a schema that it hides."""

from __future__ import annotations

import psycopg
import pytest

from queue_worker.transport.rest_errors import exposed_in
from tests.blackbox.program import Program
from tests.supabase import dashboard
from tests.supabase.project import Project, jwt, project

pytestmark = pytest.mark.full

Db = psycopg.Connection[tuple]


def of(made: Project, key: str = "") -> Program:
    return Program(SUPABASE_URL=made.url, SUPABASE_SERVICE_ROLE_KEY=key or made.service_key)


@pytest.mark.parametrize("security", [[], ["--security"]])
def test_a_key_that_may_do_everything_is_told_with_the_role_that_is_enough(
    supabase: Project, db: Db, security: list[str]
) -> None:
    for key in (supabase.service_key, supabase.secret_key):
        told = of(supabase, key).ok("doctor", "--json", *security).json
        assert told["about"]["key"] == (
            "SUPABASE_SERVICE_ROLE_KEY may do everything in the project; a JWT for role queue_worker is enough for a"
            " worker, see docs/security.md"
        )
        assert told["about"]["role"] == "service_role"
        assert told["about"]["api"] == "schema queue_worker is exposed (public, queue_worker)"
    db.execute("grant queue_worker to authenticator")
    told = of(supabase, jwt("queue_worker")).ok("doctor", "--json", *security).json
    assert told["about"]["role"] == "queue_worker"
    assert "key" not in told["about"]


@pytest.mark.parametrize("security", [[], ["--security"]])
def test_a_schema_that_the_api_hides_is_a_finding_with_the_place_to_show_it(dsn: str, security: list[str]) -> None:
    with project(dsn, schemas="public") as made:
        done = of(made)("doctor", *security)
        assert (done.code, done.err) == (1, "")
        *_, finding, fix = done.out.splitlines()
        assert finding == "api: the API does not show schema queue_worker"
        assert fix.startswith(
            "    add it under Project Settings > Data API > Exposed schemas (self-hosted: PGRST_DB_SCH"
        )
        told = of(made)("doctor", "--json", *security).json
        assert (told["healthy"], [one["subject"] for one in told["findings"]]) == (False, ["api"])
        assert told["about"]["connection"].startswith("supabase (REST)")


def test_schemas_that_the_api_must_not_show_are_found_by_asking_it(dsn: str, db: Db) -> None:
    db.execute("select queue_worker.create_queue('work')")
    dashboard.expose_queues(db)
    with project(dsn, schemas="public,queue_worker,pgmq,pgmq_public") as made:
        done = of(made)("doctor", "--security", "--json")
        found = {one["finding"]: one["fix"] for one in done.json["findings"]}
        assert done.code == 1
        for finding, fix in found.items():
            if "schema pgmq is shown" not in finding:
                db.execute(fix.encode())
        assert any("schema pgmq_public offers queues to anon, authenticated" in finding for finding in found)
        ((finding, fix),) = [
            (one["finding"], one["fix"]) for one in of(made)("doctor", "--security", "--json").json["findings"]
        ]
        assert finding.startswith("exposed: schema pgmq is shown by the API")
    # As the fix says it for ones own server: the rest of the list.
    schemas = fix.partition("PGRST_DB_SCHEMAS=")[2].rstrip(")")
    assert schemas == "public,queue_worker,pgmq_public"
    with project(dsn, schemas=schemas) as made:
        assert of(made).ok("doctor", "--security", "--json").json["healthy"]


def test_a_wrong_key_is_one_line(supabase: Project) -> None:
    done = of(supabase, jwt("service_role", secret="another secret with more than 32 characters"))("doctor")
    assert done.code == 1
    assert "SUPABASE_SERVICE_ROLE_KEY is not accepted" in done.line


@pytest.mark.parametrize(
    ("answer", "schemas"),
    [
        # PostgREST 12 and 14.
        ({"message": "The schema must be one of the following: public, pgmq", "hint": None}, ["public", "pgmq"]),
        ({"message": "Invalid schema: x", "hint": "Only the following schemas are exposed: public"}, ["public"]),
        ({"message": "something else", "hint": None}, None),
    ],
)  # fmt: skip
def test_what_the_api_shows_is_read_from_its_refusal(answer: dict[str, str], schemas: list[str] | None) -> None:
    assert exposed_in({"code": "PGRST106", **answer}) == schemas
    assert exposed_in({"code": "PGRST202", **answer}) is None
