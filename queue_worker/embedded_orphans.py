"""Processes and files that an embedded PostgreSQL left behind when it or its supervisor was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from queue_worker.embedded_supervisor import open_lock, postmaster, try_lock
from queue_worker.errors import ConfigError, QueueWorkerError


def pause(deadline: float, complaint: str) -> None:
    """Wait a moment before the next look; raises QueueWorkerError(complaint) once time.monotonic() > deadline."""
    if time.monotonic() > deadline:
        raise QueueWorkerError(complaint)
    time.sleep(0.02)


def _send(pid: int, what: int) -> bool:
    """Send a signal; False when there is no such process. True also for a process that we may not signal."""
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _postgres_pids(data_dir: Path) -> set[int]:
    """Living postgres processes of this data directory; without /proc only the one that postmaster.pid names."""
    if sys.platform != "linux":
        pid = postmaster(data_dir)[0]
        shown = subprocess.run(["/bin/ps", "-o", "comm=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return {pid} if pid and shown.stdout.strip().endswith("postgres") else set()
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:  # postgres makes the data directory its working directory
            if os.readlink(entry / "cwd") == str(data_dir) and "postgres" in Path(os.readlink(entry / "exe")).name:
                found.add(int(entry.name))
        except OSError:  # gone, a zombie, or somebody else's
            continue
    return found


def take_over(data_dir: Path, deadline: float) -> int:
    """Wait until no process of an earlier server is left, ending orphans; return the locked server.lock.

    The caller must hold start.lock: with a living supervisor there are no orphans.
    """
    fd = open_lock(data_dir.parent / "server.lock")
    begun = time.monotonic()
    try:
        while not try_lock(fd):
            pids, main, waited = _postgres_pids(data_dir), postmaster(data_dir)[0], time.monotonic() - begun
            if main in pids:
                pids, what = {main}, signal.SIGINT if waited < 10 else signal.SIGQUIT
            else:  # kill -9 of the postmaster: its children may be busy in a query for hours before they notice
                what = signal.SIGQUIT if waited < 5 else signal.SIGKILL
            for pid in pids:
                _send(pid, what)
            pause(deadline, f"processes of an earlier server still use {data_dir}")
    except BaseException:
        os.close(fd)
        raise
    return fd


def drop_stale_pid_file(data_dir: Path) -> None:
    """Remove a postmaster.pid whose pid went to an unrelated process, which postgres would take for a server.

    A pid file with a dead pid is left to postgres, which also looks at the shared memory that it names.
    """
    pid = postmaster(data_dir)[0]
    if pid in _postgres_pids(data_dir):  # it does not hold server.lock, so it is none of ours
        raise ConfigError(f"a PostgreSQL that queue_worker did not start (pid {pid}) uses {data_dir}; stop it first")
    if pid and _send(pid, 0):
        (data_dir / "postmaster.pid").unlink()
