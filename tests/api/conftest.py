"""Fixtures of the tests of the API."""

from __future__ import annotations

from tests.sql.conftest import engine

__all__ = ["engine"]
