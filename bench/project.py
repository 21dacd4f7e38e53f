"""What the benchmarks over REST and the pooler share: a server with the roles of a Supabase project."""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from queue_worker import embedded, migrate
from queue_worker.embedded import EmbeddedServer
from tests.supabase.postgrest import prepare_roles


@contextlib.contextmanager
def prepared() -> Iterator[EmbeddedServer]:
    """Run a migrated server that has the roles of a Supabase project, with default durability."""
    with tempfile.TemporaryDirectory() as folder:
        with embedded.ensure(Path(folder)) as server:
            prepare_roles(server.url)
            migrate.up(server.url)
            yield server
        embedded.stop(Path(folder), delete=True)


def quantiles(label: str, values: list[float]) -> None:
    """Print the distribution of `values`, in seconds."""
    cuts = statistics.quantiles(values, n=100)
    print(
        f"{label}: p50 {cuts[49] * 1e3:.0f} ms  p95 {cuts[94] * 1e3:.0f} ms  max {max(values) * 1e3:.0f} ms", flush=True
    )
