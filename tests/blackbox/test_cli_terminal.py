"""The commands on a terminal: tables, questions, and a status that refreshes."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from tests.blackbox.program import Program, Terminal


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
    db.execute("select queue_worker.pause('post', 'the printer burns')")
    terminal.read_until("the printer burns")
    terminal.interrupt()
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text


def test_the_demo_on_a_terminal(bare: Program) -> None:
    terminal = Terminal(bare, "demo")
    assert terminal.end() == 0
    assert "of 13 messages are done" in terminal.text
    assert "16 of 16 checks hold" in terminal.text
    assert Path(".queue-worker/demo/worker.log").exists()
