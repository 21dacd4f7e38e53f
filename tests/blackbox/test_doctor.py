"""`queue-worker doctor` as its user sees it, on every way to the database: what it tells and finds, its exit code."""

from __future__ import annotations

import re

import psycopg
import pytest

from tests.blackbox.program import Done, Program
from tests.stages import Stage
from tests.supabase import dashboard

pytestmark = pytest.mark.conformance(hosted=True)

Db = psycopg.Connection[tuple]


@pytest.fixture
def post(program: Program, db: Db) -> Program:
    """Queue `post` with a message."""
    db.execute("select queue_worker.create_queue('post')")
    db.execute("select queue_worker.send('post', '{}')")
    return program


def printed(done: Done) -> list[tuple[str, str]]:
    """(finding, fix) of each pair of lines; there must be nothing else behind the first."""
    lines = done.out.splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("    ")) - 1
    pairs = list(zip(lines[first::2], lines[first + 1 :: 2], strict=True))
    assert all(fix.startswith("    ") and not finding.startswith(" ") for finding, fix in pairs), done.out
    return [(finding, fix.strip()) for finding, fix in pairs]


def test_it_tells_what_is_behind_the_connection(post: Program, db: Db, stage: Stage) -> None:
    told = post.ok("doctor", "--json").json
    assert (told["healthy"], told["findings"]) == (True, [])
    about = told["about"]
    common = {"connection", "postgres", "pgmq", "role", "owner", "clock", "api"}
    assert about.keys() == common | ({"key"} if stage.transport == "rest" else {"pooler"})
    assert about["connection"].startswith("supabase (REST)" if stage.transport == "rest" else "postgres")
    assert about.get("pooler", "").startswith(
        {"direct": "none found", "pooler": "in transaction mode", "rest": ""}[stage.transport]
    )
    assert about["pgmq"] == "installed without an extension, as of " + ("1.5" if stage.pgmq == "1.5.1" else "1.13")
    assert about["owner"] == "queue_owner"
    assert re.fullmatch(r"[01]\.\d s from this machine's", about["clock"])
    # The same for a person.
    lines = post.ok("doctor").out.splitlines()
    assert lines[-1] == "nothing is wrong"
    assert {line.partition(": ")[0] for line in lines[:-1]} == about.keys()


def test_each_finding_is_a_line_and_its_fix_and_the_fixes_mend_all(post: Program, db: Db) -> None:
    dashboard.create_queue(db, "theirs")
    db.execute("drop trigger queue_worker_wake on pgmq.q_post")
    db.execute(
        "create or replace function queue_worker.sign_off(worker text) returns void language sql as 'select null'"
    )
    db.execute("revoke execute on function queue_worker.claim from queue_worker")
    done = post("doctor")
    assert done.code == 1
    found = printed(done)
    beginnings = [
        "queue post: its trigger queue_worker_wake is missing or disabled",
        "schema: function queue_worker.sign_off(text) was edited in the database",
        "schema: role queue_worker may not call queue_worker.claim(text,integer,",
        "queue theirs: belongs to postgres, with row level security and no policy: a worker would see it as empty",
    ]
    assert len(found) == len(beginnings)
    assert all(finding.startswith(words) for (finding, _), words in zip(found, beginnings, strict=True)), found
    for _, fix in found:
        db.execute(fix.encode())
    assert post.ok("doctor", "--json").json["healthy"]


def test_a_missing_schema_is_the_only_finding(post: Program, db: Db) -> None:
    db.execute("drop schema queue_worker cascade")
    for security in ([], ["--security"]):
        done = post("doctor", "--json", *security)
        assert (done.code, [one["fix"] for one in done.json["findings"]]) == (1, ["queue-worker migrate"])
        assert "connection" in done.json["about"]


@pytest.mark.parametrize(
    ("act", "line"),
    [
        ("grant select on pgmq.q_post to anon", "security: grant: pgmq.q_post anon may select it"),
        ("grant delete on pgmq.a_post to public", "security: grant: pgmq.a_post public may delete it"),
        (
            "grant execute on function queue_worker.drop_queue to authenticated",
            "security: grant: queue_worker.drop_queue(text) authenticated may call it",
        ),
        (
            "alter table pgmq.a_post disable row level security",
            "security: 0007 policy_exists_rls_disabled: pgmq.a_post has policies, but row level security is off",
        ),
        (
            "set role queue_owner; create table queue_worker_data.mine (id int primary key); reset role",
            "security: 0013 rls_disabled: queue_worker_data.mine has row level security off",
        ),
    ],
)
def test_what_was_opened_by_hand_ends_with_1_and_the_fix_makes_the_next_look_clean(
    post: Program, db: Db, act: str, line: str
) -> None:
    assert post.ok("doctor", "--security").out.endswith("nothing is wrong\n")
    db.execute(act.encode())
    done = post("doctor", "--security")
    assert done.code == 1
    ((finding, fix),) = printed(done)
    assert finding == line
    db.execute(fix.encode())
    assert post.ok("doctor", "--security", "--json").json["healthy"]
