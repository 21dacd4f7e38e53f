"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def env(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets environment variables by keyword; an empty string stays an empty variable."""

    def set_env(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_env


@pytest.fixture
def env_file(clean_environment: None) -> Callable[..., Path]:
    """Writes a settings file into the working directory and returns its path."""

    def write(text: str, name: str = ".env", mode: int = 0o600) -> Path:
        path = Path(name)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return path

    return write
