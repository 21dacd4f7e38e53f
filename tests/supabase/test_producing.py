"""Sending from Supabase: every block of docs/supabase-producing.md runs, and a worker handles each message once."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import queue_worker
from queue_worker import Job
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.stages import Dsn
from tests.supabase import dashboard
from tests.supabase.project import Project, jwt, project
from tests.worker.kit import app_of

pytestmark = pytest.mark.full

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "supabase-producing.md").read_text()
ANN = "11111111-1111-1111-1111-111111111111"
BOB = "22222222-2222-2222-2222-222222222222"


def block(kind: str, number: int = 0) -> str:
    """A block of the page by what stands after its fence."""
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.S | re.M)[number]


@pytest.fixture
def made(dsn: str, db: psycopg.Connection[Any]) -> Iterator[Project]:
    """A project where the dashboard has exposed its functions and the page's SQL has run."""
    dashboard.expose_queues(db)
    for number in range(3):
        db.execute(block("sql", number).encode())
    with project(dsn, schemas="public,queue_worker,pgmq_public") as running_one:
        yield running_one


class Node:
    """Runs JavaScript with the real supabase-js."""

    def __init__(self, made: Project, folder: Path) -> None:
        self._made = made
        self._folder = folder
        (folder / "node_modules").symlink_to(ROOT / ".make/npm/node_modules")

    def __call__(self, text: str, *, user: str | None = None) -> str:
        """Run a block; `user`: the session of whom, as the client itself would bring it."""
        session = ", { accessToken: async () => process.env.SESSION }" if user else ""
        text = text.replace("_KEY)", f"_KEY{session})")
        names = "const { SUPABASE_URL, SUPABASE_ANON_KEY, SUPABASE_SERVICE_ROLE_KEY } = process.env\n"
        script = self._folder / "block.mjs"
        script.write_text(names + text)
        variables = {
            "SUPABASE_URL": self._made.url,
            "SUPABASE_ANON_KEY": self._made.anon_key,
            "SUPABASE_SERVICE_ROLE_KEY": self._made.service_key,
            "SESSION": jwt("authenticated", sub=user or ""),
        }
        done = subprocess.run(
            # Node.js 20 has a WebSocket behind this option, later ones have it anyway; the client wants one to exist.
            ["node", "--no-warnings", "--experimental-websocket", script],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def node(made: Project, tmp_path: Path) -> Node:
    return Node(made, tmp_path)


@pytest.fixture
def engine(db: psycopg.Connection[Any], made: Project) -> Engine:
    return Engine(db, "email")


def payloads(engine: Engine) -> list[str]:
    return [row[0] for row in engine.rows("select message->>'to' from pgmq.q_QUEUE order by msg_id")]


def run_python(made: Project, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_URL", made.url)
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", made.service_key)
    exec(compile(text, "supabase-producing.md", "exec", dont_inherit=True), {"__name__": "page"})
    queue_worker.close()


def test_every_way_of_the_page_sends_and_each_message_is_handled_once(
    made: Project,
    node: Node,
    engine: Engine,
    db: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert node(block("js browser"), user=ANN) == "message 1"
    # The key is hers: sent again it is the same message, sent by somebody else it is another one.
    assert node(block("js browser"), user=ANN) == "message 1"
    assert node(block("js browser"), user=BOB) == "message 2"
    assert node(block("js server")) == "message 3"
    run_python(made, block("python", 0), monkeypatch)
    run_python(made, block("python", 1), monkeypatch)
    assert capsys.readouterr().out == "message 4\nmessage 5\n"
    assert node(block("js invite"), user=ANN) == "message 6"
    assert node(block("js dashboard")) == "message 7"
    people = ["ann", "ann", "ann", "bob", "carl", "dora", "emil"]
    assert payloads(engine) == [f"{name}@example.com" for name in people]
    db.execute("grant insert on public.orders to authenticated")
    db.execute("set role authenticated; insert into public.orders (total) values (250); reset role")
    engine.rows("update pgmq.q_email set vt = now()")  # one was sent with a delay

    handled: list[tuple[str, int]] = []
    lock = threading.Lock()

    def handle(job: Job[dict[str, Any]]) -> None:
        with lock:
            handled.append((job.queue, job.msg_id))

    reached = Dsn(made.dsn)
    reached.worker = made.settings()
    with running(reached, app_of(handle, "email", "orders")):
        wait_until(lambda: len(handled) >= 8 and engine.count("queue") == 0, 20)
    assert sorted(handled) == [*(("email", number) for number in range(1, 8)), ("orders", 1)]


SEND = """
import { createClient } from '@supabase/supabase-js'
const supabase = createClient(SUPABASE_URL, SUPABASE_ANON_KEY)
const { data, error, status } = await supabase.schema('queue_worker').rpc('send', %s)
console.log(status, error?.code, error?.message)
"""


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (
            "{ queue: 'email', payload: { text: 'x'.repeat(5000) } }",
            "400 22023 payload is 5012 bytes, the limit for role",
        ),
        (
            "{ queue: 'email', payload: {}, delay_seconds: 2600000 }",
            "400 22023 a message may be delayed by 2592000 sec",
        ),
        ("{ queue: 'email', payload: {}, priority: 5 }", '403 42501 option "priority" is not for role "authenticated"'),
        ("{ queue: 'orders', payload: {} }", '403 42501 role "authenticated" may not send to queue "orders"'),
        (
            "{ queue: 'email', payload: JSON.parse('{\"a\":'.repeat(80) + '1' + '}'.repeat(80)) }",
            "400 22023 payload is nes",
        ),
    ],
)
def test_what_was_not_allowed_is_refused_as_the_page_says(
    node: Node, engine: Engine, arguments: str, answer: str
) -> None:
    assert node(SEND % arguments, user=ANN).startswith(answer)
    assert payloads(engine) == []


def test_more_than_allowed_in_a_minute_is_429_for_this_user_alone(node: Node, engine: Engine) -> None:
    many = """
import { createClient } from '@supabase/supabase-js'
const supabase = createClient(SUPABASE_URL, SUPABASE_ANON_KEY)
const seen = []
for (let n = 0; n < 12; n++) {
  const { status } = await supabase.schema('queue_worker').rpc('send', { queue: 'email', payload: { n } })
  seen.push(status)
}
console.log(seen.join(' '))
"""
    assert node(many, user=ANN) == " ".join(["200"] * 10 + ["429"] * 2)
    assert node(block("js browser"), user=BOB) == "message 11"
    assert engine.count("queue") == 11


def test_nobody_who_is_not_signed_in_may_send_or_invite(node: Node, engine: Engine) -> None:
    assert node(block("js browser")).startswith("42501")
    assert node(block("js invite")).startswith("42501")
    assert payloads(engine) == []
