"""`queue-worker retry QUEUE` empties any number of dead letters in calls of bounded length."""

from __future__ import annotations

from tests.blackbox.program import Program
from tests.sql.engine import Engine


def test_retry_of_a_whole_queue_sends_a_thousand_at_a_time(engine: Engine, dsn: str) -> None:
    engine.rows(
        "insert into queue_worker_data.dead_letters (queue, msg_id, payload, attempts, reason, error, enqueued_at)"
        " select 'work', n, '{}', 6, 'attempts', 'x', now() from generate_series(1, 2500) n"
    )
    assert Program(DATABASE_URL=dsn).ok("retry", "work", "--json").json["retried"] == 2500
    assert (engine.count("queue"), engine.count("dead")) == (2500, 0)
    # On a slow machine a call ends before its thousand, when its time is over.
    counts = [
        row[0] for row in engine.rows("select (detail -> 'count')::int from queue_worker.audit order by audit_id")
    ]
    assert sum(counts) == 2500
    assert 0 < min(counts) <= max(counts) <= 1000
