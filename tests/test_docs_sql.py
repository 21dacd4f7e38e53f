"""Every SQL block of docs/sql.md runs, and shows what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker.processors.email_payload import EmailPayload

PAGE = (Path(__file__).parent.parent / "docs" / "sql.md").read_text()
BLOCKS = re.findall(r"```sql\n(.*?)```", PAGE, re.S)


def run(db: psycopg.Connection[Any], block: str) -> list[list[dict[str, Any]]]:
    """Run a block's statements; returns the rows of each."""
    answers = []
    cursor = db.execute(block)
    while True:
        if cursor.description:
            names = [column.name for column in cursor.description]
            answers.append([dict(zip(names, row, strict=True)) for row in cursor.fetchall()])
        if not cursor.nextset():
            return answers


def block(words: str) -> str:
    (found,) = [one for one in BLOCKS if words in one]
    return found


@pytest.fixture
def sent(db: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """A database on which the first two blocks ran: six mails."""
    run(db, BLOCKS[0])
    run(db, BLOCKS[1])
    return db


def claim(db: psycopg.Connection[Any], count: int) -> list[Any]:
    return db.execute(
        "select msg_id, read_ct, enqueued_at from queue_worker.claim('email', %s, 60) where kind = 'job'", [count]
    ).fetchall()


def bury(db: psycopg.Connection[Any], receipt: Any) -> None:
    db.execute(
        "select queue_worker.settle('email', other_ids => array[%s::bigint], other_cts => array[%s::int],"
        " other_ats => array[%s::timestamptz], kinds => '{dead}', delays => '{0}', reasons => '{rejected}',"
        " errors => '{because}')",
        list(receipt),
    )


def test_every_block_runs_in_order(db: psycopg.Connection[Any]) -> None:
    assert len(BLOCKS) > 12
    for one in BLOCKS:
        run(db, one)


def test_newest_ten_mails_show_recipient_and_subject(sent: psycopg.Connection[Any]) -> None:
    (rows,) = run(sent, block("newest ten mails"))
    assert [(row["recipient"], row["subject"], row["state"]) for row in rows][:3] == [
        ("fay@example.com", "Plain", "waiting"),
        ("eve@example.com", "Two", "delayed"),
        ("dan@example.com", "One", "waiting"),
    ]


def test_queues_counts_each_state(sent: psycopg.Connection[Any]) -> None:
    claim(sent, 1)
    (rows,) = run(sent, block("all queues"))
    assert [(row["waiting"], row["delayed"], row["running"], row["dead"]) for row in rows] == [(2, 3, 1, 0)]


def test_running_shows_the_claimed_message_only(sent: psycopg.Connection[Any]) -> None:
    ((claimed, _, _),) = claim(sent, 1)
    (rows,) = run(sent, block("what is running now"))
    assert [row["msg_id"] for row in rows] == [claimed]


def test_dead_letter_shows_why_and_its_history(sent: psycopg.Connection[Any]) -> None:
    (receipt,) = claim(sent, 1)
    bury(sent, receipt)
    (rows,) = run(sent, block("what died and why"))
    assert [(row["msg_id"], row["attempts"], row["reason"], row["error"]) for row in rows] == [
        (receipt[0], 1, "rejected", "because")
    ]
    (one,) = run(sent, block("one message wherever it is"))
    assert one[0]["state"] == "dead"
    assert [f["error"] for f in one[0]["failures"]] == ["because"]


def test_trigger_sends_the_row_and_fails_with_it(sent: psycopg.Connection[Any]) -> None:
    run(sent, block("trigger order_created"))
    sent.execute("insert into public.orders (amount) values (5)")
    payload = sent.execute("select payload from queue_worker.messages('orders')").fetchone()
    assert payload is not None
    assert {name: payload[0][name] for name in ("schema", "table", "op", "id", "old")} == {
        "schema": "public",
        "table": "orders",
        "op": "INSERT",
        "id": 1,
        "old": None,
    }
    sent.execute("drop table pgmq.q_orders cascade")
    with pytest.raises(psycopg.errors.UndefinedTable, match='queue "orders" does not exist'):
        sent.execute("insert into public.orders (amount) values (6)")
    assert sent.execute("select count(*) from public.orders").fetchone() == (1,)


def test_best_effort_trigger_keeps_the_row_and_the_message_goes_out_later(sent: psycopg.Connection[Any]) -> None:
    sent.execute("create table public.notes (id int)")
    sent.execute(
        "create trigger t after insert on public.notes for each row"
        " execute function queue_worker.send_row('later', 'best_effort')"
    )
    sent.execute("insert into public.notes values (1)")
    sent.execute("select queue_worker.create_queue('later')")
    assert sent.execute("select queue_worker.resend_unsent('later')").fetchone() == (1,)
    assert sent.execute("select payload ->> 'id' from queue_worker.messages('later')").fetchall() == [("1",)]


def test_mail_trigger_sends_what_the_email_processor_accepts(sent: psycopg.Connection[Any]) -> None:
    run(sent, block("trigger order_created"))
    run(sent, block("function public.order_mail"))
    sent.execute("insert into public.orders (amount) values (5)")
    row = sent.execute("select payload from queue_worker.messages('email', 1, newest => true)").fetchone()
    assert row is not None
    assert EmailPayload.model_validate(row[0]).subject == "Order 1"


def test_unique_keys_keep_the_waiting_message_and_its_time(sent: psycopg.Connection[Any]) -> None:
    answers = run(sent, block("one digest per customer"))
    ids = [rows[0]["send"] for rows in answers]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    row = sent.execute("select message ->> 'text', vt > now() from pgmq.q_email where msg_id = %s", [ids[0]]).fetchone()
    assert row == ("3 new", True)


def test_a_follow_up_goes_out_when_its_batch_is_done(sent: psycopg.Connection[Any]) -> None:
    sent.execute("select pgmq.purge_queue('email')")
    ((answer,),) = [run(sent, block("when both mails are done"))]
    assert len(answer) == 2
    for receipt in claim(sent, 2):
        sent.execute(
            "select queue_worker.settle('email', other_ids => array[%s::bigint], other_cts => array[%s::int],"
            " other_ats => array[%s::timestamptz], kinds => '{result}', delays => '{0}', reasons => '{\"\"}',"
            " errors => '{\"\"}')",
            list(receipt),
        )
    ((progress,),) = [run(sent, block("how far the batches are"))]
    assert [(row["total"], row["done"], row["failed"]) for row in progress] == [(2, 2, 0)]
    assert sent.execute("select message ->> 'subject' from pgmq.q_email").fetchall() == [("All sent",)]
