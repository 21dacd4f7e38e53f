"""The whole demo with a worker that has nothing but a URL and a key."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker import demo
from queue_worker.demo_results import Results
from queue_worker.embedded import EmbeddedServer
from tests.supabase.postgrest import prepare_roles
from tests.supabase.project import project

pytestmark = pytest.mark.full


class Silent(contextlib.AbstractContextManager[Any]):
    """A screen that keeps the summary."""

    results: Results

    def __exit__(self, *_: object) -> None: ...

    def note(self, text: str) -> None: ...

    def progress(self, done: int, total: int, text: str) -> None: ...

    def show(self, results: Results) -> None:
        self.results = results

    def keep(self, server: EmbeddedServer) -> None: ...


@contextlib.contextmanager
def over_rest(server: EmbeddedServer) -> Iterator[Mapping[str, str]]:
    prepare_roles(server.url)
    # On Supabase these roles are there before the schema.
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("call queue_worker_data.lock_down()")
    with project(server.url) as made:
        yield {"SUPABASE_URL": made.url, "SUPABASE_SERVICE_ROLE_KEY": made.service_key}


def told(results: Results) -> dict[str, Any]:
    """The summary without times and folders."""
    return {
        "checks": [(check.name, check.ok) for check in results.checks],
        "queues": [{k: v for k, v in one.items() if "second" not in k} for one in results.queues],
        "payments": [(one["account"], one["status"], one["amount_minor"]) for one in results.payments],
        "ledger": results.ledger,
        "dead": [(one["queue"], one["reason"]) for one in results.dead],
        "mails": sorted((one["subject"], *sorted(one["to"])) for one in results.mails),
        "files": sorted(Path(one["path"]).suffix for one in results.files),
    }


def test_the_summary_is_the_same_over_rest(tmp_path: Path) -> None:
    direct, rest = Silent(), Silent()
    assert demo.run(tmp_path / "direct", direct) == 0
    assert demo.run(tmp_path / "rest", rest, reach=over_rest) == 0
    assert rest.results.ok
    assert told(rest.results) == told(direct.results)
