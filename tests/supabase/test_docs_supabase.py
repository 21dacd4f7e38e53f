"""Every block of docs/supabase.md, connections.md, security.md and doctor.md runs, and does what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker import App
from tests.blackbox.program import Program
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.stages import Dsn
from tests.supabase import dashboard
from tests.supabase.project import Project, jwt

pytestmark = pytest.mark.full

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```", (DOCS / page).read_text(), re.S | re.M)


def plain(text: str) -> str:
    """A text without what differs from run to run: timestamps of files, seconds."""
    return re.sub(r"\d+\.\d\d s", "N s", re.sub(r"\d{14}", "", text))


def shown(block: str, said: str) -> bool:
    """Whether a program said the lines of a block, in this order; `...` stands for more."""
    pattern = ".*".join(map(re.escape, plain(block).rstrip("\n").split("...\n")))
    return re.search(pattern, plain(said), re.S) is not None


def test_the_ways_to_install_run_in_the_order_of_the_page(empty_dsn: str, supabase: Project) -> None:
    Path("supabase/migrations").mkdir(parents=True)
    ran, texts, said = [], [], ""
    for language, text in blocks("supabase.md"):
        if language == "text":
            if text.startswith('queue "email"'):
                Program(DATABASE_URL=empty_dsn).ok("create", "email")
                said = Program(DATABASE_URL=empty_dsn, QUEUE_WORKER_SCHEMA="staging")("send", "email", "{}").err
            assert shown(text, said), said
            texts.append(text)
            continue
        exports = dict(re.findall(r"^export (\w+)=(\S+)$", text, re.M))
        (command,) = (line for line in text.splitlines() if not line.startswith("export "))
        words = shlex.split(command)[1:]
        if "QUEUE_WORKER_SCHEMA" in exports:
            program = Program(DATABASE_URL=empty_dsn, **exports)
        elif exports:
            assert exports.keys() == {"SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY"}
            program = Program(
                SUPABASE_URL=supabase.url, SUPABASE_SERVICE_ROLE_KEY=supabase.secret_key, QUEUE_WORKER_BURST="1"
            )
        else:
            program = Program(DATABASE_URL=empty_dsn)
        if "--uninstall" in words:
            words.append("--yes")
        done = program.ok(*words)
        said = done.err + done.out
        ran.append(words)
    assert (len(ran), len(texts)) == (6, 5)
    with psycopg.connect(empty_dsn) as db:
        left = db.execute(
            "select nspname from pg_namespace where nspname ~ '^(queue_worker|staging)' order by 1"
        ).fetchall()
    assert left == [("staging",), ("staging_data",)]


def test_a_function_by_name_and_the_ack_commit_together_as_the_page_says(
    supabase: Project, over_rest: str, db: psycopg.Connection[Any]
) -> None:
    (_, sql), (_, code) = blocks("connections.md")
    db.execute(sql.encode())
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, "connections.md", "exec", dont_inherit=True), names)
    app: App = names["app"]
    engine = Engine(db, "invoices")
    db.execute("select queue_worker.send('invoices', '{\"id\": 7, \"total\": 250}')")
    with running(over_rest, app, only="invoices"):
        wait_until(lambda: engine.count("archive") == 1, 20)
    assert db.execute("select * from public.invoices").fetchall() == [(7, 250)]


def test_the_statements_of_the_page_of_security_run_and_the_narrow_key_is_enough_for_a_worker(
    supabase: Project, db: psycopg.Connection[Any], dsn: str
) -> None:
    dashboard.expose_queues(db)
    db.execute("select queue_worker.create_queue('invoices')")
    (_, sql), _ = blocks("connections.md")
    db.execute(sql.encode())
    assert Program(DATABASE_URL=dsn)("doctor", "--security").code == 1
    for language, text in blocks("security.md"):
        if language == "sql":
            db.execute(text.encode())
        else:
            assert Program(DATABASE_URL=dsn).ok(*shlex.split(text)[1:]).out.endswith("nothing is wrong\n")
    db.execute("drop role mail_worker; drop role dashboard")
    key = jwt("queue_worker")
    reached = Dsn(dsn)
    reached.worker = {"supabase_url": supabase.url, "supabase_service_role_key": key}
    app = App(builtins=False)
    tries: list[int] = []

    @app.processor("invoices", cycle=0.1, retry=(0,))
    def handle(job: Any) -> None:
        tries.append(job.attempt)
        if job.attempt == 1:
            raise ValueError("once")
        job.finish("public.write_invoice", order_id=job.payload["id"], total=1)

    app.schedule("every 1s", queue="invoices", name="tick", payload={"id": 2}, misfire="skip")
    db.execute("select queue_worker.send('invoices', '{\"id\": 1}')")
    with running(reached, app):
        wait_until(lambda: db.execute("select 1 from public.invoices where order_id = 1").fetchone(), 20)
        wait_until(lambda: db.execute("select 1 from public.invoices where order_id = 2").fetchone(), 20)
        wait_until(lambda: db.execute("select 1 from queue_worker.workers").fetchone())
    assert tries[:2] == [1, 2]
    # And it is no key for anything else.
    narrow = Program(SUPABASE_URL=supabase.url, SUPABASE_SERVICE_ROLE_KEY=key)
    done = narrow("purge", "invoices", "--yes")
    assert done.code == 78
    assert "may not do this" in done.err
    # The same questions with the wide key carry a warning.
    program = Program(SUPABASE_URL=supabase.url, SUPABASE_SERVICE_ROLE_KEY=supabase.service_key)
    assert "a JWT for role queue_worker is enough" in program.ok("start", "--burst").err
    assert "is enough" not in narrow.ok("start", "--burst").err


def test_the_doctor_says_what_the_page_shows(dsn: str, db: psycopg.Connection[Any]) -> None:
    program = Program(DATABASE_URL=dsn)
    (_, first), (_, shown), (_, mending), (_, second) = blocks("doctor.md")
    said = program.ok(*shlex.split(first)[1:]).out
    assert re.sub(r"\d+\.\d+", "N", said) == re.sub(r"\d+\.\d+", "N", shown)
    db.execute("alter function queue_worker.sign_off rename to other")
    db.execute("revoke execute on function queue_worker.claim from queue_worker")
    assert program("doctor").code == 1
    db.execute("drop function queue_worker.other")
    for statement in mending.splitlines():
        db.execute(statement.encode())
    assert program.ok(*shlex.split(first)[1:]).out == said
    assert program.ok(*shlex.split(second)[1:]).out.endswith("nothing is wrong\n")
