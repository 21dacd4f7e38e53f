"""A project for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.supabase.project import Project, project


@pytest.fixture
def supabase(dsn: str) -> Iterator[Project]:
    """A project whose database is fresh and has the schema."""
    with project(dsn) as made:
        yield made
