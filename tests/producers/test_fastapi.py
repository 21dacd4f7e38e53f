"""A FastAPI program under uvicorn whose lifespan runs the worker, and whose requests enqueue."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from queue_worker import App, Job
from tests.helpers import wait_until
from tests.sql.engine import Engine


class Greeting(BaseModel):
    name: str


def make_api(done: list[str]) -> FastAPI:
    app = App(builtins=False)

    @app.processor("work", cycle=0.1)
    def greet(job: Job[Greeting]) -> None:
        done.append(job.payload.name)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with app.running():
            yield

    api = FastAPI(lifespan=lifespan)

    @api.post("/greet")
    async def enqueue(greeting: Greeting) -> dict[str, Any]:
        return {"id": await greet.asend(greeting)}

    @api.post("/greet-sync")
    def enqueue_in_a_thread(greeting: Greeting) -> dict[str, Any]:
        return {"id": greet.send(greeting, delay="0s")}

    return api


@pytest.fixture
def done() -> list[str]:
    return []


@pytest.fixture
def url(engine: Engine, done: list[str]) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(make_api(done), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive(), 30)
    assert server.started
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(40)
    assert not thread.is_alive()


def test_what_requests_enqueue_is_processed_in_the_same_program(url: str, done: list[str], engine: Engine) -> None:
    first = httpx.post(f"{url}/greet", json={"name": "Ann"})
    second = httpx.post(f"{url}/greet-sync", json={"name": "Bob"})
    assert [first.json(), second.json()] == [{"id": 1}, {"id": 2}]
    wait_until(lambda: sorted(done) == ["Ann", "Bob"])
    wait_until(lambda: engine.count("archive") == 2)
