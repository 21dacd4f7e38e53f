"""Commands of operators on a real database: cancel, complete, purge, drop, edit, redrive, purge-subject."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.blackbox.program import Program, Terminal

pytestmark = pytest.mark.conformance(hosted=True)

Db = psycopg.Connection[tuple]


@pytest.fixture
def post(program: Program, db: Db) -> Program:
    """Queue `post` with the messages 1 to 3."""
    db.execute("select queue_worker.create_queue('post')")
    db.execute("select queue_worker.send('post', jsonb_build_object('n', n)) from generate_series(1, 3) n")
    return program


def lay(db: Db, count: int) -> None:
    db.execute(
        "insert into queue_worker_data.dead_letters (queue, msg_id, payload, attempts, reason, error, enqueued_at)"
        " select 'post', n + 100, jsonb_build_object('n', n, 'text', 'привет'), 6, 'attempts', 'e', now()"
        " from generate_series(1, %s) n",
        [count],
    )


def rows(db: Db, query: str) -> list[tuple]:
    return db.execute(query.encode()).fetchall()


def test_cancel_and_complete_say_what_became_of_each_message(post: Program) -> None:
    done = post("cancel", "post", "1", "9")
    assert (done.code, done.out.splitlines()) == (
        1, ["1 cancelled", "9 not in queue 'post'; `queue-worker show post 9` says where it is"],
    )  # fmt: skip
    assert post.ok("complete", "post", "2,3", "--json").json == {
        "queue": "post", "messages": [{"id": "2", "completed": True}, {"id": "3", "completed": True}],
    }  # fmt: skip
    [shown] = post.ok("show", "post", "1", "--json").json
    assert shown["state"] == "cancelled"
    assert [(one["action"], one["detail"]["msg_id"]) for one in post.ok("audit", "post", "--json").json] == [
        ("complete", "3"), ("complete", "2"), ("cancel", "1"),
    ]  # fmt: skip
    last = post.ok("audit", "--limit", "1").out.splitlines()
    assert len(last) == 2
    assert 'complete  post   {"msg_id": "3", "running": false}' in last[1]
    assert post("cancel", "post", "x").code == 2
    assert post("cancel", "pots", "1").line.startswith("queue 'pots' does not exist; did you mean post?")


def test_what_destroys_asks_or_wants_yes(post: Program, db: Db) -> None:
    lay(db, 1)
    for command, what in (
        (("purge", "post"), "3 messages of queue 'post'"),
        (("drop", "post"), "queue 'post' with its archive and 3 messages"),
        (
            ("purge-subject", "ann"),
            "every message, archived message, dead letter and ledger entry that names this person",
        ),
    ):
        done = post(*command)
        assert (done.code, done.line) == (2, f"{command[0]} deletes {what} for good: say so with --yes")
    assert rows(db, "select count(*) from pgmq.q_post") == [(3,)]
    terminal = Terminal(post, "purge", "post")
    terminal.read_until("Delete 3 messages of queue 'post' for good?")
    terminal.type("n\n")
    assert terminal.end() == 0
    assert "nothing deleted" in terminal.text
    assert post.ok("purge", "post", "--yes").out == "3 deleted from queue 'post'\n"
    assert post.ok("drop", "post", "--yes", "--json").json == {"queue": "post", "dropped": True}
    assert rows(db, "select to_regclass('pgmq.q_post') is null") == [(True,)]
    assert rows(db, "select count(*) from queue_worker_data.dead_letters") == [(1,)]


def test_purge_subject_deletes_all_of_a_person(post: Program, db: Db) -> None:
    db.execute("""select queue_worker.send('post', '{"to": "ann"}') from generate_series(1, 2)""")
    assert post.ok("purge-subject", "ann", "--yes").out == "2 deleted\n"
    assert post.ok("purge-subject", "ann", "--yes", "--json").json == {"deleted": 0}
    assert rows(db, "select count(*) from pgmq.q_post") == [(3,)]


def test_a_dead_letter_is_edited_from_words_file_and_standard_input(post: Program, db: Db) -> None:
    lay(db, 1)
    payload = "select payload from queue_worker_data.dead_letters"
    assert post.ok("dead", "edit", "post", "1", '{"n": 2}').out == (
        "dead letter 1 changed; `queue-worker retry post 1` sends it\n"
    )
    assert rows(db, payload) == [({"n": 2},)]
    assert post.ok("dead", "edit", "post", "1", "-", "--json", stdin='{"n": 3}').json == {
        "queue": "post", "dead_id": "1", "changed": True,
    }  # fmt: skip
    Path("new.json").write_text('{"n": 3}')
    assert post.ok("dead", "edit", "post", "1", "@new.json").out == "nothing changed\n"
    assert rows(db, "select count(*) from queue_worker_data.audit where action = 'edit_dead'") == [(2,)]
    for arguments, words in (
        (["[1]"], "a payload is a JSON object, not an array"),
        (["{"], "the payload is not JSON"),
        ([], "give the new payload: JSON, - for standard input, or @FILE"),
    ):
        done = post("dead", "edit", "post", "1", *arguments)
        assert done.code == 2
        assert done.line.startswith(words)
    assert rows(db, payload) == [({"n": 3},)]


def test_on_a_terminal_the_editor_opens(post: Program, db: Db) -> None:
    lay(db, 1)
    Path("edit.py").write_text(
        "import pathlib, sys\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "path.write_text(path.read_text(encoding='utf-8').replace('привет', '你好'), encoding='utf-8')\n"
    )
    with_editor = Program(**post.variables, EDITOR="python3 edit.py")
    assert Terminal(with_editor, "dead", "edit", "post", "1").end() == 0
    assert rows(db, "select payload ->> 'text' from queue_worker_data.dead_letters") == [("你好",)]
    broken = Terminal(Program(**post.variables, EDITOR="false"), "dead", "edit", "post", "1")
    assert broken.end() == 2
    assert "the editor 'false' ended with code 1: nothing changed" in broken.text


def test_retry_takes_the_first_ones_at_a_rate(post: Program, db: Db) -> None:
    lay(db, 4)
    post.ok("purge", "post", "--yes")
    assert post.ok("retry", "post", "--first", "3", "--per-second", "0.01", "--json").json["retried"] == 3
    assert rows(db, "select (message ->> 'n')::int, vt > now() + interval '90 s' from pgmq.q_post order by 1") == [
        (1, False), (2, True), (3, True),
    ]  # fmt: skip
    assert post("retry", "post", "4", "--first", "1").line == "give ids or --first, not both"
    assert post("retry", "post", "--per-second", "0").line.startswith("per_second must be more than 0")
    assert post.ok("retry", "post").out.startswith("1 dead letter of queue 'post' sent again")


def test_status_shows_limits_breakers_and_progress_where_there_are_any(post: Program, db: Db) -> None:
    plain = post.ok("status").out
    assert "limits" not in plain
    db.execute(
        "update queue_worker_data.queues set rate_count = 100, rate_seconds = 60, fleet = 5, per_group = 1,"
        " ordered = true, broken_until = now() + interval '1 h', broken_reason = 'HTTP 503'"
    )
    # A stand-in for the part that keeps it.
    db.execute("drop function if exists queue_worker.list_progress()")
    db.execute(
        "create function queue_worker.list_progress() returns table (queue text, msg_id bigint, done float8,"
        " total float8, note text, at timestamptz) language sql as $$ select 'post', 7, 3.5, 10, 'third page', now() $$"
    )
    shown = post.ok("status").out
    assert "100 per 60 s, 5 at once, 1 at once per group, ordered" in shown
    assert "HTTP 503" in shown
    assert shown.splitlines()[-1].split() == ["post", "7", "3.5", "10", "third", "page"]
    found = post.ok("status", "--json").json
    assert found["progress"][0]["note"] == "third page"
    assert (found["queues"][0]["broken_reason"], found["queues"][0]["ordered"]) == ("HTTP 503", True)
