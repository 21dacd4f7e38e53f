"""The commands on a real database: queues, messages, dead letters."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from tests.blackbox.program import Program

pytestmark = pytest.mark.conformance(hosted=True)

JOBS = """
from pydantic import BaseModel
from queue_worker import App, Job, Reject


class Welcome(BaseModel):
    user_id: int

app = App(builtins=False)

@app.processor("readme-queue", max_attempts=3, retry=(0, 0.01))
def welcome(job: Job[Welcome]) -> None:
    if job.payload.user_id == 13:
        raise ValueError("unlucky \\x1b[31m number")
    if job.payload.user_id == 14:
        raise Reject("fourteen is not wanted")
"""


def rows(db: psycopg.Connection[tuple], query: str) -> list[tuple]:
    return db.execute(query.encode()).fetchall()


def test_from_migrate_to_done_as_the_readme_tells_it(bare: Program, empty_dsn: str) -> None:
    program = Program(DATABASE_URL=empty_dsn)
    program.ok("migrate")
    assert program.ok("create", "readme-queue").out == "queue 'readme-queue' is ready\n"
    assert program.ok("send", "readme-queue", '{"user_id": 1}').out == "1\n"
    assert program.ok("send", "readme-queue", "-", stdin='{"user_id": 13}').out == "2\n"
    Path("message.json").write_text('\ufeff{"user_id": 14}', encoding="utf-8")
    assert program.ok("send", "readme-queue", "@message.json").out == "3\n"
    assert program.ok("send", "readme-queue", '{"user": 1}', "--json").json == {"queue": "readme-queue", "id": "4"}
    Path("jobs.py").write_text(JOBS)
    started = program.ok("start", "--app", "jobs:app", "--burst")
    assert "looks every 5 s, claims 10 at a time, runs 5 at once, retries after 0, 0.01 s" in started.err
    # Messages that wait for their retry are due in a moment.
    program.ok("start", "--app", "jobs:app", "--burst", QUEUE_WORKER_RETRY="0")
    [queue] = program.ok("status", "--json").json["queues"]
    assert (queue["queue"], queue["waiting"], queue["delayed"], queue["running"], queue["dead"]) == (
        "readme-queue", 0, 0, 0, 3
    )  # fmt: skip
    assert [one["state"] for one in program.ok("show", "readme-queue", "1", "--json").json] == ["archived"]
    dead = {one["msg_id"]: one for one in program.ok("dead", "list", "readme-queue", "--json").json}
    assert {msg_id: (one["reason"], one["attempts"]) for msg_id, one in dead.items()} == {
        "2": ("attempts", 3), "3": ("rejected", 1), "4": ("invalid", 1),
    }  # fmt: skip
    [history] = program.ok("show", "readme-queue", "2", "--json").json
    assert [one["attempt"] for one in history["failures"]] == [1, 2, 3]


@pytest.fixture
def dead_letters(program: Program, db: psycopg.Connection[tuple]) -> Program:
    """Queue `post` with three dead letters of two kinds."""
    program.ok("create", "post")
    db.execute(
        "insert into queue_worker_data.dead_letters (queue, msg_id, payload, headers, attempts, reason, error,"
        " enqueued_at) select 'post', n, jsonb_build_object('n', n, 'text', 'привет'), null, 6, 'attempts',"
        " 'ValueError: no ' || chr(27) || '[31m' || n || chr(10) || '  at jobs.py:1 in f', now()"
        " from generate_series(1, 3) n"
    )
    return program


def test_dead_letters_are_listed_and_shown(dead_letters: Program) -> None:
    lines = dead_letters.ok("dead", "list", "post").out.splitlines()
    assert lines[0].split() == ["dead_id", "msg_id", "attempts", "reason", "dead_at", "error"]
    assert [line.split()[0] for line in lines[1:]] == ["3", "2", "1"]
    assert "1 of 3; --limit shows more" in dead_letters.ok("dead", "list", "post", "--limit", "1").out
    shown = dead_letters.ok("dead", "show", "post", "2").out
    assert "привет" in shown
    assert "at jobs.py:1 in f" in shown
    assert "\x1b" not in shown + "".join(lines)
    assert dead_letters.ok("dead", "show", "post", "2", "--json").json["payload"] == {"n": 2, "text": "привет"}


def test_retry_says_how_many_and_what_they_get(dead_letters: Program, db: psycopg.Connection[tuple]) -> None:
    done = dead_letters.ok("retry", "post", "1,3", QUEUE_WORKER_MAX_ATTEMPTS="3", QUEUE_WORKER_RETRY="5,60")
    assert done.out == (
        "2 dead letters of queue 'post' sent again: up to 3 attempts each, retries after 5, 60 s,"
        " unless its decorator says otherwise: set QUEUE_WORKER_APP to see that\n"
    )
    assert rows(db, "select message ->> 'n' from pgmq.q_post order by 1") == [("1",), ("3",)]
    done = dead_letters("retry", "post", "1", "2")
    assert done.code == 2
    assert done.line.startswith("queue 'post' has no dead letter 1;")
    assert rows(db, "select count(*) from queue_worker_data.dead_letters") == [(1,)]
    assert dead_letters.ok("retry", "post", "--json").json == {
        "queue": "post", "retried": 1, "max_attempts": 6, "delays": [60.0, 120.0, 240.0, 480.0, 960.0],
    }  # fmt: skip
    assert dead_letters.ok("retry", "post").out == "queue 'post' has no dead letters\n"


def test_retry_knows_what_the_decorator_says(program: Program, db: psycopg.Connection[tuple]) -> None:
    Path("jobs.py").write_text(JOBS)
    program.ok("create", "readme-queue")
    db.execute(
        "insert into queue_worker_data.dead_letters (queue, msg_id, payload, attempts, reason, error, enqueued_at)"
        " values ('readme-queue', 1, '{}', 3, 'attempts', 'x', now())"
    )
    done = program.ok("retry", "readme-queue", QUEUE_WORKER_APP="jobs:app")
    assert done.out.endswith("up to 3 attempts each, retries after 0, 0.01 s\n")


def test_clear_asks_and_deletes_dead_letters_alone(dead_letters: Program, db: psycopg.Connection[tuple]) -> None:
    dead_letters.ok("send", "post", '{"stays": true}')
    done = dead_letters("clear", "post")
    assert (done.code, done.line) == (
        2, "clear deletes 3 dead letters of queue 'post' for good: say so with --yes",
    )  # fmt: skip
    assert dead_letters.ok("clear", "post", "--yes").out == "3 deleted from queue 'post'\n"
    assert dead_letters.ok("clear", "post").out == "queue 'post' has no dead letters\n"
    assert rows(db, "select count(*) from pgmq.q_post") == [(1,)]
    assert rows(db, "select action, queue from queue_worker.audit where action = 'discard'") == [("discard", "post")]


def test_a_queue_that_is_not_there_is_named_with_those_that_are(program: Program) -> None:
    program.ok("create", "post")
    program.ok("create", "parcels")
    commands = (
        ("send", "pots", "{}"), ("send", "pots", "[]", "--batch"), ("show", "pots", "1"), ("dead", "list", "pots"),
        ("dead", "show", "pots", "1"), ("retry", "pots"), ("retry", "pots", "1"), ("clear", "pots", "--yes"),
        ("pause", "pots"), ("resume", "pots"),
    )  # fmt: skip
    for arguments in commands:
        done = program(*arguments)
        assert done.code == 2
        assert done.line == (
            "queue 'pots' does not exist; did you mean post? queues here: parcels, post; `queue-worker create pots`"
            " makes it"
        )


def test_options_of_send_reach_the_message(program: Program, db: psycopg.Connection[tuple]) -> None:
    program.ok("create", "post")
    program.ok(
        "send", "post", "{}", "--delay", "1h30m", "--max-attempts", "2", "--retry-delay", "10s", "--timeout", "5"
    )
    program.ok("send", "post", "{}", "--at", "2031-05-06T07:08:09+02:00")
    program.ok("send", "post", "{}", "--at", "2001-01-01T00:00:00Z")
    assert rows(db, "select extract(epoch from vt - enqueued_at)::int, headers from pgmq.q_post where msg_id = 1") == [
        (5400, {"max_attempts": 2, "retry_delay_seconds": 10, "timeout_seconds": 5})
    ]
    assert rows(db, "select vt = '2031-05-06T05:08:09Z' from pgmq.q_post where msg_id = 2") == [(True,)]
    states = [program.ok("show", "post", msg_id, "--json").json[0]["state"] for msg_id in "123"]
    assert states == ["delayed", "delayed", "waiting"]


def test_headers_of_ones_own_travel_with_the_message(program: Program, db: psycopg.Connection[tuple]) -> None:
    program.ok("create", "post")
    program.ok("send", "post", "{}", "--header", "trace=a=b", "--header", "empty=")
    assert rows(db, "select headers from pgmq.q_post") == [({"trace": "a=b", "empty": ""},)]


def test_priority_expiry_and_unique_keys_reach_the_message(program: Program, db: psycopg.Connection[tuple]) -> None:
    program.ok("create", "post")
    program.ok("send", "post", "{}", "--priority", "7", "--expires", "2 hours")
    program.ok("send", "post", "{}", "--expires", "2031-05-06T07:08:09+02:00")
    assert rows(
        db,
        "select headers ->> 'priority', round(extract(epoch from (headers ->> 'expires_at')::timestamptz - enqueued_at)"
        " / 3600) from pgmq.q_post where msg_id = 1",
    ) == [("7", 2)]
    assert rows(db, "select headers ->> 'expires_at' from pgmq.q_post where msg_id = 2") == [
        ("2031-05-06T05:08:09.000000Z",)
    ]
    unique = ("--unique-key", "k", "--unique-mode", "replace", "--unique-scope", "active", "--unique-for", "1 day")
    assert program.ok("send", "post", '{"n": 1}', *unique).out == "3\n"
    assert program.ok("send", "post", '{"n": 2}', *unique).out == "3\n"
    assert program.ok("send", "post", '[{"payload": {"n": 3}}]', "--batch", *unique).out == "3\n"
    assert rows(db, "select message from pgmq.q_post where msg_id = 3") == [({"n": 3},)]
    done = program("send", "post", "{}", "--group", "g")
    assert done.code == 2
    assert done.line.startswith('group_key: queue "post" is not ordered')


def test_a_batch_is_sent_as_a_whole_or_not_at_all(program: Program, db: psycopg.Connection[tuple]) -> None:
    program.ok("create", "post")
    messages = [{"payload": {"n": 1}}, {"payload": {"n": 2}, "delay_seconds": 100, "max_attempts": 1}]
    done = program.ok(
        "send", "post", "-", "--batch", "--delay", "5m", "--max-attempts", "3", stdin=json.dumps(messages)
    )
    assert done.out == "1\n2\n"
    assert rows(
        db, "select extract(epoch from vt - enqueued_at)::int, headers ->> 'max_attempts' from pgmq.q_post order by 1"
    ) == [(100, "1"), (300, "3")]
    assert program.ok("send", "post", "[]", "--batch", "--json").json == {"queue": "post", "ids": []}
    for text, line in (
        ('[{"payload": {}}, {"payload": 5}]', "payload must be a JSON object, not number"),
        ('[{"payload": {}}, {"n": 5}]', "messages[1] is an object without payload; "),
        ('[{"payload": {}}, 7]', "messages[1] is a number; "),
        ('[{"payload": {}, "prio": 7}]', 'messages[0]: unknown option "prio"'),
        ('{"payload": {}}', "--batch takes an array such as "),
    ):
        done = program("send", "post", text, "--batch")
        assert done.code == 2
        assert done.line.startswith(line)
    assert rows(db, "select count(*) from pgmq.q_post") == [(2,)]


def test_pause_shows_in_status_and_resume_ends_it(program: Program) -> None:
    program.ok("create", "post")
    program.ok("pause", "post", "--reason", "the printer burns")
    assert "the printer burns" in program.ok("status").out
    [queue] = program.ok("status", "--json").json["queues"]
    assert queue["pause_reason"] == "the printer burns"
    program.ok("resume", "post")
    [queue] = program.ok("status", "--json").json["queues"]
    assert (queue["paused_at"], queue["pause_reason"]) == (None, None)


def test_status_of_an_empty_database_names_the_next_step(program: Program) -> None:
    assert "queue-worker create NAME" in program.ok("status").out
    assert program.ok("status", "--json").json == {"queues": [], "workers": [], "progress": [], "alerts": []}


def test_show_of_a_message_that_is_nowhere(program: Program) -> None:
    program.ok("create", "post")
    done = program("show", "post", "5")
    assert done.code == 2
    assert done.line.startswith("queue 'post' has no message 5")


def test_email_test_enqueues_a_mail(program: Program, db: psycopg.Connection[tuple]) -> None:
    done = program("email", "test", "ann@example.com")
    assert done.code == 2
    assert "`queue-worker create email` makes it" in done.line
    program.ok("create", "email")
    assert program.ok("email", "test", "ann@example.com").out == "1\n"
    assert rows(db, "select message ->> 'to' from pgmq.q_email") == [("ann@example.com",)]
    for arguments, line in (
        (("email", "test"), "say to whom: "),
        (("email", "test", "not an address"), "'not an address' is no address: "),
    ):
        done = program(*arguments)
        assert done.code == 2
        assert done.line.startswith(line)
    waited = program("email", "test", "ann@example.com", "--wait", "--seconds", "1")
    assert waited.code == 1
    assert "no living worker serves queue 'email'" in waited.out
