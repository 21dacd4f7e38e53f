"""The API on a real port, on a thread of the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from queue_worker import App
from queue_worker.api.server import ApiServer
from queue_worker.config import load_settings
from tests.helpers import wait_until

TOKEN = "operator-token-of-the-tests"
READ_TOKEN = "read-only-token-of-the-tests"


class Client(httpx.Client):
    """Speaks to one server; `url` is its address, `stop` ends it before the block does."""

    url: str
    stop: Callable[[], None]


@contextmanager
def served(
    database_url: str | None, *, app: App | None = None, token: str | None = None, **settings: Any
) -> Iterator[Client]:
    """Serve the API while the block runs, with both tokens where `token` is one; yields a client that sends `token`."""
    given = {"api_token": TOKEN, "api_read_token": READ_TOKEN} if token is not None else {}
    found = load_settings({"database_url": database_url, "port": 0, **given, **settings})
    server = ApiServer(found, app)
    thread = threading.Thread(target=server.run, name="api")
    thread.start()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with Client(base_url=server.url, headers=headers, timeout=30) as client:
            client.url, client.stop = server.url, server.stop
            wait_until(lambda: client.get("/health").status_code == 200, 10)
            yield client
    finally:
        server.stop()
        thread.join(15)
        assert not thread.is_alive(), "the server did not end"
