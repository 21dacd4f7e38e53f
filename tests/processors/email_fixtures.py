"""Fixtures of the e-mail tests, as a plugin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from email_context import Context, Mailer, MemoryStorage
from smtp_server import SmtpServer

from queue_worker.processor import Processor
from queue_worker.processors.email import EmailConfig, make_processor


@pytest.fixture
def context(dsn: str) -> Iterator[Context]:
    context = Context(dsn)
    yield context
    context.close()


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def mailer(smtp: SmtpServer, storage: MemoryStorage, tmp_path: Path) -> Iterator[Mailer]:
    """Build processors that talk to `smtp`; keyword arguments are those of EmailConfig."""
    made: list[Processor] = []

    def make(**options: Any) -> Processor:
        usual: dict[str, Any] = {
            "host": smtp.host,
            "port": smtp.port,
            "from_email": "shop@example.org",
            "from_name": "The Shop",
            "timeout_seconds": 5.0,
            "outbox_dir": tmp_path / "outbox",
        }
        made.append(make_processor(EmailConfig(**usual | options), storage))
        return made[-1]

    yield make
    for processor in made:
        assert processor.close is not None
        processor.close()
