"""Live updates: every page gets the same look at the database, and none holds up the end of the server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

from queue_worker.api import create_api
from queue_worker.config import load_settings
from tests.api.served import Client, served
from tests.sql.engine import Engine


def states(client: Client) -> Iterator[dict[str, Any]]:
    """The `state` events of a page that has just been opened."""
    with client.stream("GET", "/events") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: ") and name == "state":
                yield json.loads(line.removeprefix("data: "))


def test_a_page_gets_texts_and_plots_of_every_queue(dsn: str, engine: Engine) -> None:
    engine.fill(3)
    engine.settle(engine.take(1))
    with served(dsn) as client:
        found = next(states(client))
    work = found["queues"]["work"]
    assert (work["waiting"], work["running"], work["completed"]) == ("2", "0", "1")
    assert work["runs"].startswith("M")
    assert (work["failed"], work["peak"], work["state"]) == ("", "1", "")


def test_many_pages_share_one_look(dsn: str, engine: Engine) -> None:
    engine.fill(1)
    backend = create_api(settings=load_settings({"database_url": dsn})).state.queue_worker.backend
    seen: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: seen.append(backend.snapshot())) for _ in range(12)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 12
        assert len({one["at"] for one in seen}) == 1
        # Whoever has changed something sees it at once.
        backend.forget()
        assert backend.snapshot()["at"] > seen[0]["at"]
    finally:
        backend.close()


def test_an_open_page_ends_with_the_server(dsn: str, engine: Engine) -> None:
    ended: list[int] = []

    def watch(client: Client, opened: threading.Event) -> None:
        for _ in states(client):
            opened.set()
        ended.append(1)

    with served(dsn) as client:
        opened = threading.Event()
        page = threading.Thread(target=watch, args=(client, opened))
        page.start()
        assert opened.wait(20)
        client.stop()
        page.join(20)
        # The stream has come to its end by itself: a connection that is cut would have raised.
        assert ended == [1]
