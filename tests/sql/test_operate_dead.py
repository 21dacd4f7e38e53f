"""Dead letters: edited, run again at a rate, and what is kept of them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.sql.engine import Engine
from tests.sql.test_operator import bury


def lay(engine: Engine, count: int, headers: Any = None) -> None:
    engine.rows(
        "insert into queue_worker_data.dead_letters"
        " (queue, msg_id, payload, headers, attempts, reason, error, enqueued_at)"
        " select 'work', n + 100000, jsonb_build_object('n', n), %s::jsonb, 6, 'attempts', 'e', now()"
        " from generate_series(1, %s) n",
        json.dumps(headers),
        count,
    )


def dues(engine: Engine) -> list[float]:
    """Seconds from the first due time, in the order of the dead letters."""
    rows = engine.rows(
        "select extract(epoch from vt - min(vt) over ())::float8 as s from pgmq.q_work order by (message ->> 'n')::int"
    )
    return [round(row.s, 3) for row in rows]


def test_an_edited_dead_letter_runs_with_its_new_payload(engine: Engine) -> None:
    bury(engine, {"to": "nobody"})
    dead_id = engine.value("select dead_id from queue_worker.dead_letters")
    edit = "select queue_worker.edit_dead('work', %s, %s::jsonb)"
    assert engine.value(edit, dead_id, '{"to": "ann"}') is True
    assert engine.value("select queue_worker.redrive('work')") == 1
    assert engine.value("select payload from queue_worker.messages('work')") == {"to": "ann"}
    (row,) = engine.rows("select action, queue, detail from queue_worker.audit order by audit_id limit 1")
    # The audit never holds what the payload held.
    assert row == ("edit_dead", "work", {"dead_id": dead_id})
    assert engine.value(edit, dead_id, "{}") is False


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ("[1]", "must be a JSON object, not array"),
        ("null", "must be a JSON object, not null"),
        (None, "must be a JSON object, not null"),
        (json.dumps({"x": "y" * 262_144}), "the limit is 262144"),
    ],
)
def test_a_payload_that_send_would_refuse_is_refused(engine: Engine, payload: str | None, words: str) -> None:
    bury(engine, {"a": 1})
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=words):
        engine.rows("select queue_worker.edit_dead('work', 1, %s::jsonb)", payload)
    assert engine.value("select payload from queue_worker.dead_letters") == {"a": 1}


def test_a_dead_letter_of_another_queue_is_not_edited(engine: Engine) -> None:
    bury(engine)
    Engine(engine.connection, "other").create()
    assert engine.value("select queue_worker.edit_dead('other', 1, '{\"a\": 2}')") is False
    assert engine.value("select payload from queue_worker.dead_letters") == {}


def test_two_redrives_at_once_of_1000_dead_letters_give_1000_messages(dsn: str, engine: Engine) -> None:
    lay(engine, 1000)

    def redrive(_: int) -> int:
        total = 0
        with psycopg.connect(dsn, autocommit=True) as connection:
            while sent := Engine(connection).value("select queue_worker.redrive('work', max_count => 50)"):
                total += int(sent)
        return total

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(redrive, range(4))) == 1000
    assert engine.rows("select count(*) as n, count(distinct message ->> 'n') as d from pgmq.q_work") == [(1000, 1000)]
    assert engine.count("dead") == 0


def test_the_first_ones_are_the_oldest(engine: Engine) -> None:
    lay(engine, 5)
    engine.rows("update queue_worker_data.dead_letters set error = 'moved' where dead_id = 1")
    assert engine.value("select queue_worker.redrive('work', max_count => 2)") == 2
    assert engine.rows("select (message ->> 'n')::int from pgmq.q_work order by 1") == [(1,), (2,)]


def test_a_rate_spreads_the_due_times_over_all_calls(engine: Engine) -> None:
    lay(engine, 7)
    for _ in range(2):
        assert engine.value("select queue_worker.redrive('work', max_count => 3, per_second => 0.5)") == 3
    assert dues(engine) == [0, 2, 4, 6, 8, 10]
    # Without a rate they are due at once, whatever was spread before.
    assert engine.value("select queue_worker.redrive('work')") == 1
    assert engine.value("select vt <= clock_timestamp() from pgmq.q_work where message ->> 'n' = '7'")


def test_a_purge_forgets_what_was_spread_before(engine: Engine) -> None:
    lay(engine, 2)
    engine.rows("select queue_worker.redrive('work', max_count => 1, per_second => 0.001)")
    engine.rows("select queue_worker.purge('work')")
    engine.rows("select queue_worker.redrive('work', per_second => 0.001)")
    assert engine.value("select vt <= clock_timestamp() from pgmq.q_work")


@pytest.mark.parametrize("rate", [0, -1, "NaN", "Infinity"])
def test_a_rate_that_is_none_is_refused(engine: Engine, rate: Any) -> None:
    lay(engine, 1)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="per_second must be more than 0"):
        engine.rows("select queue_worker.redrive('work', per_second => %s::float8)", rate)
    assert engine.count("dead") == 1


def test_a_redriven_message_keeps_its_options_but_its_expiry(engine: Engine) -> None:
    options = {"group_key": "g", "priority": 7, "unique_key": "u", "max_attempts": 2, "expires_at": "2020-01-01T00:00Z"}
    lay(engine, 1, options)
    engine.rows("select queue_worker.redrive('work')")
    headers = engine.value("select headers from pgmq.q_work")
    del options["expires_at"]
    assert {name: headers[name] for name in options} == options
    assert "expires_at" not in headers
    assert headers["redriven_from"] == 1
