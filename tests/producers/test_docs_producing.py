"""Every Python block of docs/producing.md runs, in order, in one program; and does what the page says."""

from __future__ import annotations

import ast
import asyncio
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

import queue_worker
from queue_worker.sending import SendOptions
from tests.helpers import running, wait_until

PAGE = (Path(__file__).parents[2] / "docs" / "producing.md").read_text()
BLOCKS = re.findall(r"^```python([^\n]*)\n(.*?)^```", PAGE, re.S | re.M)


@pytest.fixture
def module(dsn: str, db: psycopg.Connection[Any]) -> Iterator[types.ModuleType]:
    """The page as one program."""
    db.execute("select queue_worker.create_queue(q) from unnest(array['welcome', 'email', 'orders', 'done']) q")
    db.execute("create table public.orders (id int generated always as identity, amount int, charge text)")
    made = types.ModuleType("page")
    made.DATABASE_URL = dsn  # type: ignore[attr-defined]
    made.SQLALCHEMY_URL = dsn.replace("postgresql://", "postgresql+psycopg://")  # type: ignore[attr-defined]
    sys.modules["page"] = made
    yield made
    del sys.modules["page"]


def run(module: types.ModuleType) -> None:
    for note, text in BLOCKS:
        if note.strip():
            ast.parse(text)
        else:
            exec(compile(text, "producing.md", "exec", dont_inherit=True), vars(module))


def count(db: psycopg.Connection[Any], query: str) -> int:
    row = db.execute(f"select count(*) from {query}").fetchone()
    assert row is not None
    return int(row[0])


def test_the_page_runs_and_says_the_truth(
    module: types.ModuleType, db: psycopg.Connection[Any], dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(module)
    assert count(db, "pgmq.q_email") == 3
    # The page's own loop has ended what its two transactions sent.
    assert count(db, "public.orders") == count(db, "pgmq.a_orders") == 2
    said = capsys.readouterr().out
    assert "nobody has run it yet" in said
    assert "True" in said

    async def program() -> None:
        transport = httpx.ASGITransport(module.api)
        async with module.lifespan(module.api), httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            assert (await client.post("/users/77/welcome")).json()["id"].isdigit()
            # User 2 comes in an hour, user 4 in a day; all others are done, and so what follows the batch was sent.
            await asyncio.to_thread(wait_until, lambda: count(db, "pgmq.q_welcome") == 2)

    asyncio.run(program())
    assert count(db, "pgmq.a_welcome where message ->> 'user_id' = '77'") == 1
    assert db.execute("select message from pgmq.q_done").fetchall() == [({"batch": "january"},)]


def test_the_charge_of_the_page_is_made_once(module: types.ModuleType, db: psycopg.Connection[Any], dsn: str) -> None:
    run(module)
    with running(dsn, module.app, only=("orders",)):  # type: ignore[attr-defined]
        for before in (2, 3):
            queue_worker.Queue("orders").send({"id": 1, "amount": 5})
            wait_until(lambda before=before: count(db, "pgmq.a_orders") == before + 1)
    assert count(db, "public.orders where charge = 'ch_1'") == 1
    assert db.execute("select key, state, attempts from queue_worker_data.once").fetchall() == [
        ("order:1:charge", "done", 1)
    ]


def test_every_block_that_is_not_run_says_why() -> None:
    assert [note.strip() for note, _ in BLOCKS if note.strip()] == ["not-run: needs a Django project"]


def test_every_option_stands_in_the_table() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    missing = [name for name in SendOptions.__annotations__ if not any(f"`{name}`" in row for row in rows)]
    assert missing == []
