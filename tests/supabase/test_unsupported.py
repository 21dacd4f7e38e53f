"""What REST cannot do by nature raises one clear error that names the way that works."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from queue_worker import Job, Queue
from queue_worker.errors import ConfigError, TransportUnsupported
from queue_worker.opening import close_pools
from queue_worker.transport.supabase import SupabaseDatabase
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.supabase.project import Project
from tests.worker.kit import app_of
from tests.worker.processes import NOTES

pytestmark = pytest.mark.full


@pytest.fixture
def engine(db: psycopg.Connection[Any]) -> Engine:
    made = Engine(db).create()
    for statement in NOTES.split(";\n\n"):
        made.rows(statement)
    return made


def test_a_transaction_of_a_handler_is_refused_by_name_and_charges_nobody(over_rest: str, engine: Engine) -> None:
    seen: list[str] = []

    def handle(job: Job[dict[str, Any]]) -> None:
        try:
            with job.transaction() as transaction:
                transaction.execute("select 1")
        except TransportUnsupported as error:
            seen.append(str(error))
            raise

    msg_id = engine.send({})
    with running(over_rest, app_of(handle)):
        wait_until(lambda: len(seen) >= 1)
        wait_until(lambda: engine.trouble(msg_id))
    assert "set DATABASE_URL" in seen[0]
    assert "job.finish('schema.function', ...)" in seen[0]
    assert "\n" not in seen[0]
    # A setting is missing, the message is not at fault.
    assert engine.trouble(msg_id).failures == 0
    assert engine.places(msg_id) == ["queue"]


def test_functions_by_name_commit_together_with_the_ack(over_rest: str, engine: Engine) -> None:
    def handle(job: Job[dict[str, Any]]) -> None:
        if "bad" in job.payload:
            job.finish_all([("public.note_effect", {"key": "b"}), ("public.no_such", {})])
        job.finish("public.note_effect", key=job.payload["key"])

    good, bad = engine.send({"key": "a"}), engine.send({"bad": 1})
    with running(over_rest, app_of(handle, retry=(600,))):
        wait_until(lambda: engine.count("archive") == 1 and engine.trouble(bad))
    assert engine.places(good) == ["archive"]
    assert engine.rows("select key from effects") == [("a",)]
    assert "public.no_such" in engine.value("select error from queue_worker.failures")


def test_a_producer_may_bring_its_own_connection_and_goes_over_rest_without_one(
    supabase: Project, db: psycopg.Connection[Any], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPABASE_URL", supabase.url)
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", supabase.service_key)
    # The caller's own connection is used as it is, whatever the settings say.
    queue = Queue("work")
    with db.transaction():
        queue.send({"n": 1}, connection=db)
    queue.send({"n": 2})
    close_pools()
    assert engine.rows("select message->>'n' from pgmq.q_work order by msg_id") == [("1",), ("2",)]


def test_what_wants_a_postgres_url_says_so(supabase: Project) -> None:
    database = SupabaseDatabase(supabase.url, supabase.service_key)
    with pytest.raises(ConfigError, match="set DATABASE_URL"):
        database.conninfo()
    database.close()
