"""A project for each test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from queue_worker import embedded
from tests.stages import Dsn
from tests.supabase.installing import Server
from tests.supabase.project import Project, project


@pytest.fixture
def supabase(dsn: str) -> Iterator[Project]:
    """A project whose database is fresh and has the schema."""
    with project(dsn) as made:
        yield made


@pytest.fixture
def over_rest(supabase: Project) -> str:
    """The database's own URL; workers that are given it reach the database over REST."""
    reached = Dsn(supabase.dsn)
    reached.worker = supabase.settings()
    return reached


@pytest.fixture
def server_of_ones_own() -> Iterator[Server]:
    # Not tmp_path: pytest keeps that under a directory which user nobody cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="qw-test-")).resolve()
    folder.chmod(0o755)
    made = Server(folder / "pg")
    yield made
    made.close()
    embedded.stop(folder / "pg", delete=True)
    shutil.rmtree(folder)
