from __future__ import annotations

import psycopg

from queue_worker import App, Job
from tests.helpers import running, wait_until


def test_a_message_sent_by_plain_pgmq_is_processed_and_archived(dsn: str, db: psycopg.Connection[tuple]) -> None:
    app = App(builtins=False)
    seen = []

    @app.processor("welcome", cycle=0.1)
    def welcome(job: Job) -> None:
        seen.append(job.payload)

    with running(dsn, app):
        wait_until(lambda: db.execute("select 1 from queue_worker.queues where queue = 'welcome'").fetchone())
        db.execute("select pgmq.send('welcome', '{\"user_id\": 1}')")
        wait_until(lambda: db.execute("select count(*) from pgmq.a_welcome").fetchone() == (1,))
    assert seen == [{"user_id": 1}]
