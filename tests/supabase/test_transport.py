"""The transport over a real PostgREST: values, lost replies, limits, and errors as one line that says what to do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from queue_worker.errors import CallRefused, TransportUnavailable
from queue_worker.transport import BigInts, Ints, JsonArray, Rows, Stamps
from queue_worker.transport.supabase import SupabaseDatabase, SupabaseTransport
from tests.supabase.project import Project, jwt

pytestmark = pytest.mark.full

LEASE = 60.0


@pytest.fixture
def database(supabase: Project) -> Iterator[SupabaseDatabase]:
    opened = SupabaseDatabase(supabase.url, supabase.service_key)
    yield opened
    opened.close()


@pytest.fixture
def engine(database: SupabaseDatabase, db: psycopg.Connection[Any]) -> SupabaseTransport:
    """The transport of a loop; there is a queue `work`."""
    db.execute("select queue_worker.create_queue('work')")
    return database.transport(receipts=True)


def turn(transport: SupabaseTransport, max_count: int, done: list[tuple[Any, ...]] | None = None) -> Rows:
    done = done or []
    return transport.call(
        "queue_worker.settle_claim",
        {
            "queue": "work",
            "done_ids": BigInts(one[1] for one in done),
            "done_cts": Ints(one[2] for one in done),
            "done_ats": Stamps(one[3] for one in done),
            "on_success": "archive",
            "other_ids": BigInts(),
            "other_cts": Ints(),
            "other_ats": Stamps(),
            "kinds": [],
            "delays": [],
            "reasons": [],
            "errors": [],
            "max_count": max_count,
            "lease_seconds": LEASE,
            "suspects": 0,
            "max_lost": 5,
            "worker": "w",
            "sleep": False,
        },
    )


def jobs(rows: Rows) -> list[tuple[Any, ...]]:
    return [row for row in rows.rows if row[0] == "job"]


def fill(db: psycopg.Connection[Any], count: int) -> None:
    db.execute(
        "insert into pgmq.q_work (vt, message) select now(), jsonb_build_object('n', n) from generate_series(1, %s) n",
        [count],
    )


def count(db: psycopg.Connection[Any], table: str) -> int:
    row = db.execute(f"select count(*) from pgmq.{table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def test_a_claim_above_max_rows_is_whole_and_each_message_is_settled_once(
    engine: SupabaseTransport, db: psycopg.Connection[Any]
) -> None:
    fill(db, 2000)
    claimed = jobs(turn(engine, 2000))
    assert len({row[1] for row in claimed}) == 2000
    assert turn(engine, 0, claimed).rows == []
    assert (count(db, "q_work"), count(db, "a_work")) == (0, 2000)


def test_a_batch_above_max_rows_answers_all_its_ids(database: SupabaseDatabase, engine: SupabaseTransport) -> None:
    messages = JsonArray({"payload": {"n": n}} for n in range(1500))
    rows = database.transport().call("queue_worker.send_batch", {"queue": "work", "messages": messages}).rows
    assert len({row[0] for row in rows}) == 1500


def test_values_come_back_as_over_a_connection_of_ones_own(
    database: SupabaseDatabase, engine: SupabaseTransport, db: psycopg.Connection[Any]
) -> None:
    transport = database.transport()
    payload = {"n": 9007199254740993, "text": 'ü 中 "quoted" \\ \u0001', "list": [None, True, 1.5], "deep": {"a": {}}}
    (row,) = transport.call("queue_worker.send", {"queue": "work", "payload": payload}).dicts()
    (found,) = transport.call("queue_worker.message", {"queue": "work", "msg_id": row["send"]}).dicts()
    assert found["payload"] == payload
    assert isinstance(found["enqueued_at"], datetime)
    assert found["enqueued_at"] == db.execute("select enqueued_at from pgmq.q_work").fetchone()[0]  # type: ignore[index]
    assert found["headers"] is None


@pytest.mark.parametrize("hostile", ['{"n": 1e5000}', "null", "[1, 2]", "[" * 1500 + "]" * 1500])
def test_one_hostile_payload_spoils_nothing_beside_it(
    database: SupabaseDatabase, engine: SupabaseTransport, db: psycopg.Connection[Any], hostile: str
) -> None:
    db.execute("insert into pgmq.q_work (vt, message) values (now(), %s::jsonb), (now(), '{\"fine\": 1}')", [hostile])
    listed = database.transport().call("queue_worker.messages", {"queue": "work"}).dicts()
    assert {"fine": 1} in [one["payload"] for one in listed]
    claimed = jobs(turn(engine, 10))
    assert [row[4] for row in claimed if row[1] == 2] == ['{"fine": 1}']
    assert len(claimed) == 2


def test_nan_is_refused_before_it_is_sent(database: SupabaseDatabase, engine: SupabaseTransport) -> None:
    with pytest.raises(ValueError, match="JSON"):
        database.transport().call("queue_worker.send", {"queue": "work", "payload": {"n": float("nan")}})


def test_a_send_whose_reply_is_lost_sends_once(
    supabase: Project, database: SupabaseDatabase, engine: SupabaseTransport, db: psycopg.Connection[Any]
) -> None:
    supabase.gateway.drop_reply("send")
    (row,) = database.transport().call("queue_worker.send", {"queue": "work", "payload": {}}).rows
    assert supabase.gateway.calls["send"] == 2
    assert db.execute("select array_agg(msg_id) from pgmq.q_work").fetchone() == ([row[0]],)


def test_a_claim_whose_reply_is_lost_is_handed_out_by_the_next_call(
    supabase: Project, engine: SupabaseTransport, db: psycopg.Connection[Any]
) -> None:
    fill(db, 5)
    supabase.gateway.drop_reply("settle_claim")
    with pytest.raises(TransportUnavailable):
        turn(engine, 3)
    again = jobs(turn(engine, 5))
    assert sorted(row[1] for row in again) == [1, 2, 3, 4, 5]
    assert {row[2] for row in again} == {1}
    assert turn(engine, 0, again).rows == []
    assert count(db, "a_work") == 5


def test_what_was_claimed_anew_since_is_not_handed_out_again(
    supabase: Project, engine: SupabaseTransport, db: psycopg.Connection[Any]
) -> None:
    fill(db, 2)
    supabase.gateway.drop_reply("settle_claim")
    with pytest.raises(TransportUnavailable):
        turn(engine, 2)
    db.execute("update pgmq.q_work set read_ct = read_ct + 1 where msg_id = 1")
    assert [row[1] for row in jobs(turn(engine, 2))] == [2]


def test_a_settle_whose_reply_is_lost_is_done_when_it_is_sent_again(
    supabase: Project, engine: SupabaseTransport, db: psycopg.Connection[Any]
) -> None:
    fill(db, 1)
    claimed = jobs(turn(engine, 1))
    supabase.gateway.drop_reply("settle_claim")
    with pytest.raises(TransportUnavailable):
        turn(engine, 0, claimed)
    assert [(row[0], row[1]) for row in turn(engine, 0, claimed).rows] == [("gone", 1)]
    assert count(db, "a_work") == 1


def test_a_repeat_waits_for_the_call_that_still_runs(
    database: SupabaseDatabase, engine: SupabaseTransport, db: psycopg.Connection[Any], dsn: str
) -> None:
    key = "11111111-2222-3333-4444-555555555555"
    call = "select queue_worker.call('queue_worker.send', %s, %s)"
    arguments = [Jsonb({"queue": "work", "payload": {}}), key]
    answers = []
    with psycopg.connect(dsn) as first:
        answers.append(first.execute(call, arguments).fetchone())
        second = threading.Thread(target=lambda: answers.append(db.execute(call, arguments).fetchone()))
        second.start()
        first.commit()
        second.join(10)
    assert len(answers) == 2
    assert answers[0] == answers[1]
    assert count(db, "q_work") == 1


def test_a_key_is_no_way_to_somebody_elses_answer(db: psycopg.Connection[Any]) -> None:
    db.execute("select queue_worker.create_queue('work')")
    key, call = "11111111-2222-3333-4444-555555555555", "select queue_worker.call('queue_worker.send', %s, %s)"
    arguments = [Jsonb({"queue": "work", "payload": {"secret": 1}}), key]
    first = db.execute(call, arguments).fetchone()
    db.execute("set role service_role")
    with pytest.raises(psycopg.errors.UniqueViolation):
        db.execute(call, arguments)
    db.execute("reset role")
    assert db.execute(call, arguments).fetchone() == first


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (502, "<html><body>Bad gateway</body></html>", "Bad Gateway"),
        (503, '{"message": "no", "code": "PGRST002"}', "PGRST002"),
        (400, '{"message": "", "code": "", "hint": null, "details": null}', "lost its connection to the database"),
        (429, '{"message": "slow down"}', "slow down"),
        (540, '{"message": "paused"}', "project is paused: restore it"),
        (521, "<!doctype html>", "status 521"),
    ],
)
def test_an_outage_is_one_line(
    supabase: Project, engine: SupabaseTransport, status: int, body: str, words: str
) -> None:
    supabase.gateway.answer("settle_claim", status, body)
    with pytest.raises(TransportUnavailable, match=words) as caught:
        turn(engine, 1)
    assert "\n" not in str(caught.value)
    assert turn(engine, 1).rows == []


def test_retry_after_is_heeded(supabase: Project, engine: SupabaseTransport) -> None:
    supabase.gateway.answer("settle_claim", 429, "{}", {"Retry-After": "30"})
    with pytest.raises(TransportUnavailable):
        turn(engine, 1)
    asked = supabase.gateway.requests
    with pytest.raises(TransportUnavailable, match="asked for a pause"):
        turn(engine, 1)
    assert supabase.gateway.requests == asked


@pytest.mark.parametrize(
    "key",
    [
        jwt("service_role", "another-secret-with-more-than-32-characters"),
        jwt("service_role", exp=1),
        jwt("nobody"),
        "nonsense",
    ],
)
def test_a_wrong_key_is_named_and_not_shown(supabase: Project, key: str) -> None:
    database = SupabaseDatabase(supabase.url, key)
    with pytest.raises(CallRefused, match="SUPABASE_SERVICE_ROLE_KEY is not accepted") as caught:
        database.transport().call("queue_worker.list_queues", {})
    assert key not in str(caught.value)
    assert key not in repr(database.address())
    database.close()


def test_a_secret_key_works_like_a_jwt(supabase: Project, engine: SupabaseTransport) -> None:
    database = SupabaseDatabase(supabase.url, supabase.secret_key)
    assert len(database.transport().call("queue_worker.list_queues", {}).rows) == 1
    database.close()


def test_the_anon_key_gets_nothing(supabase: Project, engine: SupabaseTransport) -> None:
    database = SupabaseDatabase(supabase.url, supabase.anon_key)
    with pytest.raises(CallRefused) as caught:
        database.transport().call("queue_worker.list_queues", {})
    assert caught.value.sqlstate == "42501"
    database.close()


def test_a_schema_that_is_not_exposed_is_one_line(supabase: Project) -> None:
    database = SupabaseDatabase(supabase.url, supabase.service_key, schema="hidden")
    with pytest.raises(CallRefused, match=r"does not show schema hidden: .* Exposed schemas .*PGRST_DB_SCHEMAS"):
        database.transport().call("queue_worker.list_queues", {})
    database.close()


def test_a_database_without_the_schema_names_migrate(supabase: Project) -> None:
    database = SupabaseDatabase(supabase.url, supabase.service_key, schema="public")
    with pytest.raises(CallRefused, match="run `queue-worker migrate`"):
        database.transport().call("queue_worker.list_queues", {})
    database.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [("http://127.0.0.1:9", "refused"), ("http://no-such-project.invalid", "check SUPABASE_URL")],
)
def test_a_host_that_is_not_there_is_one_line(url: str, words: str) -> None:
    database = SupabaseDatabase(url, jwt("service_role"))
    with pytest.raises(TransportUnavailable, match=words):
        database.transport(receipts=True).call("queue_worker.list_queues", {})
    database.close()


def test_an_unknown_function_or_argument_is_named(database: SupabaseDatabase, engine: SupabaseTransport) -> None:
    with pytest.raises(CallRefused, match=r"'queue_worker\.nope' does not exist"):
        database.transport().call("queue_worker.nope", {})
    with pytest.raises(CallRefused, match="has no argument 'que'"):
        database.transport().call("queue_worker.pause", {"que": "work"})


def test_nothing_outside_can_be_called_by_name_until_it_is_allowed(
    database: SupabaseDatabase, engine: SupabaseTransport, db: psycopg.Connection[Any]
) -> None:
    db.execute("create schema app; grant usage on schema app to service_role")
    db.execute("create function app.twice(n int) returns int language sql as 'select 2 * n'")
    transport = database.transport()
    for function in ("app.twice", "pg_catalog.pg_sleep", "queue_worker_data.claim"):
        with pytest.raises(CallRefused, match="may not be called by name") as caught:
            transport.call(function, {"n": 4} if function == "app.twice" else {})
        assert caught.value.sqlstate == "42501"
    db.execute("select queue_worker.allow_function('app.twice')")
    assert transport.call("app.twice", {"n": 4}).rows == [(8,)]
    db.execute("select queue_worker.disallow_function('app.twice')")
    with pytest.raises(CallRefused, match="may not be called by name"):
        transport.call("app.twice", {"n": 4})


def test_old_answers_are_pruned(
    database: SupabaseDatabase, engine: SupabaseTransport, db: psycopg.Connection[Any]
) -> None:
    database.transport().call("queue_worker.send", {"queue": "work", "payload": {}})
    db.execute("update queue_worker_data.requests set at = now() - interval '2 h'")
    database.transport().call("queue_worker.send", {"queue": "work", "payload": {}})
    database.transport().call("queue_worker.prune_shared", {"max_count": 100})
    assert db.execute("select count(*) from queue_worker_data.requests where function like '%send'").fetchone() == (1,)
