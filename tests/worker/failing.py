"""Handlers of test_failures_elsewhere.py, which a child process can import."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from pydantic import BaseModel

from queue_worker import Job, Unavailable


class Declined(Exception):
    """Never retried."""


class Expired(Declined):
    """One kind of it."""


class Refused(Exception):
    """Looks like the error of an HTTP client."""

    def __init__(self) -> None:
        super().__init__("refused")
        self.status_code = 503
        self.headers = {"Retry-After": "3000"}


class Order(BaseModel):
    do: str


def handle(job: Job[Order]) -> None:
    match job.payload.do:
        case "expired":
            raise Expired("card 42")
        case "exit":
            sys.exit(3)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "refused":
            raise Refused
        case "unavailable":
            raise Unavailable("closed")


async def handle_async(job: Job[Order]) -> None:
    handle(job)


def handle_batch(jobs: list[Job[Order]]) -> None:
    for job in jobs:
        try:
            handle(job)
        except Exception as error:
            job.fail(error)


OPTIONS: dict[str, Any] = {
    "cycle": 0.1,
    "retry": [600],
    "retry_for": {Declined: None},
    "version_field": "v",
    "versions": {None, 1},
    "max_attempts": 1,
    "breaker_seconds": 2000,
}
