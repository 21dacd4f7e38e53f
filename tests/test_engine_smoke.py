from __future__ import annotations

import psycopg

from queue_worker import App, Job, Reject
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


def test_the_key_of_a_job_stays_the_same_over_a_redrive_and_differs_in_a_queue_made_anew(
    dsn: str, db: psycopg.Connection[tuple]
) -> None:
    app = App(builtins=False)
    keys = []

    @app.processor("keyed", cycle=0.1)
    def keyed(job: Job) -> None:
        keys.append(job.key)
        if len(keys) == 1:
            raise Reject("not now")

    db.execute("select queue_worker.create_queue('keyed')")
    with running(dsn, app):
        db.execute("select queue_worker.send('keyed', '{}')")
        wait_until(lambda: db.execute("select dead from queue_worker.queues").fetchone() == (1,))
        db.execute("select queue_worker.redrive('keyed')")
        wait_until(lambda: len(keys) == 2)
        wait_until(lambda: db.execute("select count(*) from pgmq.a_keyed").fetchone() == (1,))
        db.execute("select pgmq.drop_queue('keyed'); select queue_worker.create_queue('keyed')")
        db.execute("select queue_worker.send('keyed', '{}')")
        wait_until(lambda: len(keys) == 3)
    assert keys[0] == keys[1]
    assert keys[0].startswith("keyed:1:")
    assert keys[2].startswith("keyed:1:")
    assert keys[2] != keys[0]
