"""A project for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stages import Dsn
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
