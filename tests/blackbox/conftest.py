"""Fixtures of the black box tests."""

from __future__ import annotations

import signal

import pytest

from tests.blackbox.program import Program
from tests.stages import environment_of


@pytest.fixture
def bare() -> Program:
    """The program without any setting."""
    return Program()


@pytest.fixture
def program(dsn: str) -> Program:
    """The program on a fresh database with the schema."""
    return Program(**environment_of(dsn))


@pytest.fixture(autouse=True)
def ctrl_c_works() -> None:
    """A shell that runs the tests in the background lets them ignore SIGINT, and the programs would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
