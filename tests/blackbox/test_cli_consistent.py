"""Options are named as in Python, every list of commands is readable, every list has JSON whose ids are texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from queue_worker.cli import program

pytestmark = pytest.mark.conformance(hosted=True)

Run = Callable[..., str]


@pytest.fixture
def run(dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, on the test's database; returns what it printed."""
    monkeypatch.setenv("DATABASE_URL", dsn)

    def do(*words: str, code: int = 0) -> str:
        assert program.run(words) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    return do


@pytest.mark.parametrize("group", ["", "dead", "schedule", "email", "payments"])
def test_no_line_of_the_list_of_commands_is_cut_off(group: str, run: Run) -> None:
    text = run(*group.split(), "--help")
    assert "Commands:" in text
    assert [line for line in text.splitlines()[1:] if line.endswith("...")] == []


def test_send_takes_the_names_of_python_and_the_short_ones(run: Run, db: psycopg.Connection[Any]) -> None:
    run("create", "post", "--ordered")
    for at, group in (("--run-at", "--group-key"), ("--at", "--group")):
        run("send", "post", "{}", at, "2100-01-01T00:00Z", group, "a")
    rows = db.execute("select headers ->> 'group_key', extract(year from vt)::int from pgmq.q_post").fetchall()
    assert rows == [("a", 2100), ("a", 2100)]


def test_pause_and_resume_answer_in_json(run: Run) -> None:
    run("create", "post")
    assert json.loads(run("pause", "post", "--reason", "stocktaking", "--json")) == {
        "queue": "post", "paused": True, "reason": "stocktaking",
    }  # fmt: skip
    assert json.loads(run("resume", "post", "--json")) == {"queue": "post", "paused": False}


def test_every_id_in_json_is_a_text(run: Run, db: psycopg.Connection[Any]) -> None:
    run("create", "post")
    run("pause", "post")
    assert json.loads(run("audit", "post", "--json"))[0]["audit_id"].isdigit()
    run("schedule", "add", "often", "post", "--every", "1h")
    db.execute("update queue_worker_data.schedules set last_msg_id = 9007199254740993")
    assert json.loads(run("schedule", "list", "--json"))[0]["last_msg_id"] == "9007199254740993"


def test_show_shows_what_the_handler_answered(run: Run, db: psycopg.Connection[Any]) -> None:
    run("create", "post")
    run("send", "post", "{}")
    run("complete", "post", "1")
    assert json.loads(run("show", "post", "1", "--json"))[0].get("result") is None
    db.execute("""select queue_worker.keep_result('post', 1, '{"pages": 7}')""")
    assert json.loads(run("show", "post", "1", "--json"))[0]["result"] == {"pages": 7}
    assert '"pages": 7' in run("show", "post", "1")


def test_mistakes_name_what_was_typed(run: Run) -> None:
    assert "'foo' is not one of 'pm2'" in (said := run("init", "foo", code=2))
    assert "Value error" not in said
    assert "--queues names an invalid queue name 'A b'" in run("start", "-q", "A b", code=78)
    assert "give --delay or --run-at, not both" in run(
        "send", "post", "{}", "--delay", "1", "--at", "2100-01-01T00:00Z", code=2
    )


def test_what_people_have_put_in_is_shown_as_it_is(run: Run) -> None:
    """Ids of ours are texts, for JavaScript; an id in a payload is none of ours."""
    run("create", "post")
    run("send", "post", '{"id": 7}')
    (shown,) = json.loads(run("show", "post", "1", "--json"))
    assert (shown["msg_id"], shown["payload"]) == ("1", {"id": 7})
    assert '"id": 7\n' in run("show", "post", "1")


def test_show_says_that_a_redriven_message_has_a_new_id(run: Run, db: psycopg.Connection[Any]) -> None:
    run("create", "post")
    db.execute(
        "insert into queue_worker_data.dead_letters (queue, msg_id, payload, attempts, reason, error, enqueued_at)"
        " values ('post', 77, '{}', 3, 'attempts', 'x', now())"
    )
    said = run("retry", "post")
    assert "set QUEUE_WORKER_APP to see" in said
    assert "`retry` sent it again under a new id" in run("show", "post", "77", code=2)
