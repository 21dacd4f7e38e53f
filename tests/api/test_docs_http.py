"""The commands of docs/http.md, and what they answer."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient
from starlette.routing import Mount

from queue_worker.api import create_api
from queue_worker.config import load_settings
from tests.api.served import served
from tests.api.test_access import routes_below

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()


def test_every_command_answers_what_the_page_says(dsn: str, db: psycopg.Connection[tuple]) -> None:
    db.execute("select queue_worker.create_queue('email')")
    pairs = re.findall(r"^```sh\n(.*?)^```\n```json\n(.*?)^```", PAGE, re.S | re.M)
    assert len(pairs) == 4
    with served(dsn) as client:
        for command, answer in pairs:
            words = [word.replace("http://127.0.0.1:3001", client.url) for word in shlex.split(command)]
            said = json.loads(subprocess.run(words, capture_output=True, check=True, timeout=20).stdout)
            expected = json.loads(answer)
            for body in (said, expected):
                body.pop("request", None)
            assert said == expected


def test_the_application_of_the_page_serves_it_below_its_path(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)
    [block] = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
    names: dict[str, Any] = {}
    exec(compile(block, "http.md", "exec", dont_inherit=True), names)
    [mounted] = [route.app for route in names["site"].routes if isinstance(route, Mount)]
    with TestClient(names["site"], "http://localhost", client=("127.0.0.1", 5)) as client:
        assert client.get("/queues/health").json() == {"status": "ok"}
        assert client.get("/queues/api/queues").json()["success"] is True
    # It has ended with the site; its connections are looked for when the database is dropped.
    assert mounted.state.queue_worker.closing.is_set()


def test_the_page_lists_every_route(dsn: str) -> None:
    api = create_api(settings=load_settings({"database_url": dsn}))
    table = PAGE.split("## Routes")[1].split("\n## ")[0]
    paths = {route.path for route in routes_below(api.routes) if getattr(route, "include_in_schema", True)}
    for path in paths:
        *_, last = re.sub(r"/{\w+}", "", path).split("/")
        assert last in table, path
