"""Handlers that run in child processes; what they do is in their payload."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from queue_worker import Job, LeaseLost, Reject, Retry


class Work(BaseModel):
    do: str = "nothing"
    path: str = ""


class OwnError(Exception):
    """An exception whose class cannot be made from its text."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def handle(job: Job[Work]) -> Any:
    do = job.payload.do
    if do in _DEEDS:
        return _DEEDS[do](job)
    return None


async def handle_async(job: Job[Work]) -> Any:
    await asyncio.sleep(0)
    return handle(job)


def bare(job: Job[dict[str, Any]]) -> None: ...


def _pid(job: Job[Work]) -> None:
    job.call("public.note_start", key=str(job.msg_id), process=os.getpid())


def _wait(job: Job[Work]) -> None:
    _pid(job)
    with Path(job.payload.path).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)


def _parented(job: Job[Work]) -> None:
    """Wait, with a program of its own running."""
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    job.call("public.note_start", key=str(job.msg_id), process=program.pid)
    _wait(job)


def _write(job: Job[Work]) -> None:
    with job.transaction() as transaction:
        transaction.execute("insert into effects values (%s)", [job.msg_id])
        job.send("work", {}, delay_seconds=3600)


def _write_and_raise(job: Job[Work]) -> None:
    _write(job)
    raise ValueError("after the commit")


def _raise(error: BaseException) -> Any:
    raise error


def _remember(job: Job[Work]) -> Any:
    job.annotate(order=7, where=Path("/x"))
    job.progress(3, 4, "half way")
    job.extend(30)
    cancelled = job.cancelled
    _wait(job)
    return {"cancelled": cancelled, "extra": job.extra_seconds}


def _say(job: Job[Work]) -> None:
    print(f"hello from {os.getpid()}")


_DEEDS = {
    "pid": _pid,
    "wait": _wait,
    "parented": _parented,
    "write": _write,
    "write and raise": _write_and_raise,
    "remember": _remember,
    "say": _say,
    "exit": lambda job: os._exit(9),
    "sys.exit": lambda job: sys.exit(3),
    "segv": lambda job: ctypes.string_at(0),
    "kill": lambda job: os.kill(os.getpid(), signal.SIGKILL),
    "value": lambda job: _raise(ValueError("bad value")),
    "own": lambda job: _raise(OwnError("one", "two")),
    "memory": lambda job: _raise(MemoryError()),
    "retry": lambda job: _raise(Retry("not yet", delay=900)),
    "reject": lambda job: _raise(Reject("never")),
    "lease": lambda job: _raise(LeaseLost("gone")),
}
