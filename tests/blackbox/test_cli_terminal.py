"""The commands on a terminal: tables, questions, and a status that refreshes."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from queue_worker.cli import top
from tests.blackbox.program import Program, Terminal

Db = psycopg.Connection[tuple]


@pytest.fixture
def post(program: Program, db: psycopg.Connection[tuple]) -> Program:
    """Queue `post` with a message, and a dead letter with markup and a control sequence in its error."""
    db.execute("select queue_worker.create_queue('post')")
    db.execute("select queue_worker.send('post', '{\"n\": 1}')")
    db.execute(
        "insert into queue_worker_data.dead_letters (queue, msg_id, payload, attempts, reason, error, enqueued_at)"
        " values ('post', 9, %s::jsonb, 1, 'rejected', %s, now())",
        [json.dumps({"n": 9}), "[bold]not bold[/bold] [/] \x1b[2J письмо"],
    )
    return program


def test_tables_show_texts_as_they_are(post: Program) -> None:
    terminal = Terminal(post, "dead", "list", "post")
    assert terminal.end() == 0
    assert "[bold]not bold[/bold] [/] \\x1b[2J письмо" in terminal.text
    terminal = Terminal(post, "status")
    assert terminal.end() == 0
    assert "post" in terminal.text


@pytest.mark.parametrize(("answer", "left", "words"), [("n\n", 1, "nothing deleted"), ("y\n", 0, "1 deleted")])
def test_clear_asks(post: Program, db: psycopg.Connection[tuple], answer: str, left: int, words: str) -> None:
    terminal = Terminal(post, "clear", "post")
    terminal.read_until("Delete 1 dead letter of queue 'post' for good? [y/N]")
    terminal.type(answer)
    assert terminal.end() == 0
    assert words in terminal.text
    assert db.execute("select count(*) from queue_worker_data.dead_letters").fetchone() == (left,)


def test_ctrl_c_at_the_question_deletes_nothing(post: Program, db: psycopg.Connection[tuple]) -> None:
    terminal = Terminal(post, "clear", "post")
    terminal.read_until("[y/N]")
    assert terminal.interrupt_question() == 130
    assert "Traceback" not in terminal.text
    assert db.execute("select count(*) from queue_worker_data.dead_letters").fetchone() == (1,)


def test_watch_refreshes_in_place_until_ctrl_c(post: Program, db: psycopg.Connection[tuple]) -> None:
    terminal = Terminal(post, "status", "--watch")
    terminal.read_until("post")
    terminal.read_until("last 30 min")
    db.execute("select queue_worker_data.count_settled('post', done => 6, retried => 2)")
    db.execute("select queue_worker.heartbeat('w:1:ab', 'w', 1, '9.9', array['post'], 8, 4)")
    db.execute("select queue_worker.check_alerts('{\"dead\": 1}')")
    db.execute("select queue_worker.pause('post', 'the printer burns')")
    for words in ("1 dead letter", "25 %", "█", "the printer burns", "█████····· 4/8"):
        terminal.read_until(words)
    terminal.interrupt()
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text


def test_watch_on_a_terminal_without_block_characters_draws_with_ascii(post: Program, db: Db) -> None:
    db.execute("select queue_worker_data.count_settled('post', done => 5)")
    db.execute("select queue_worker.heartbeat('w:1:ab', 'w', 1, '9.9', array['post'], 8, 4)")
    terminal = Terminal(Program(**post.variables, PYTHONIOENCODING="ascii:replace"), "status", "--watch")
    terminal.read_until("#####..... 4/8")
    terminal.interrupt()
    assert terminal.end() == 0
    assert "█" not in terminal.text


def test_a_minute_is_a_sign_and_a_bar_is_never_longer_than_its_slots() -> None:
    history = [[60 * 4, 8, 0, 0], [60 * 8, 0, 1, 0], [60 * 10, 2, 1, 1]]
    drawn = top.sparkline(history, 60 * 10 + 59, 8, "12345678")
    assert "".join(sign for sign, _ in drawn) == " 8   1 4"
    assert [failed for _, failed in drawn] == [False] * 5 + [True, False, True]
    assert top.sparkline([], 0, 3, "12345678") == [(" ", False)] * 3
    assert [top.bar(busy, slots, "#", ".") for busy, slots in ((0, 0), (1, 100), (9, 5))] == [
        ".......... 0/0",
        "#......... 1/100",
        "########## 9/5",
    ]


def test_json_has_the_history_and_the_alerts(post: Program, db: Db) -> None:
    db.execute("select queue_worker_data.count_settled('post', done => 3, dead => 1)")
    db.execute("select queue_worker.check_alerts('{\"dead\": 1}')")
    found = post.ok("status", "--json").json
    [queue] = found["queues"]
    assert [minute[1:] for minute in queue["history"]] == [[3, 0, 1]]
    assert queue["rate"] > 0
    assert queue["error_rate"] == 0.25
    assert [(one["name"], one["queue"], one["cleared_at"]) for one in found["alerts"]] == [("dead", "post", None)]
    assert "1 dead letter" in post.ok("status").out


def test_the_demo_on_a_terminal(bare: Program) -> None:
    terminal = Terminal(bare, "demo")
    assert terminal.end() == 0
    assert "of 13 messages are done" in terminal.text
    assert "16 of 16 checks hold" in terminal.text
    assert Path(".queue-worker/demo/worker.log").exists()
