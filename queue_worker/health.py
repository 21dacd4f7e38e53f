"""Files by which `queue-worker health` sees the workers of this machine; no database is asked."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

STALE_SECONDS = 30.0
"""A worker that has not reported for this long is not well; it reports about every five."""


class HealthFile:
    """The file of one worker process under `<state dir>/run`; gone when the worker stops."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "run" / f"{os.getpid()}.json"

    def report(self, healthy: bool, **facts: Any) -> None:
        """Write the file anew; a folder that cannot be written never stops a worker."""
        body = json.dumps({"pid": os.getpid(), "healthy": healthy, "at": time.time(), **facts})
        temporary = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(body)
            temporary.replace(self._path)
        except OSError:
            return

    def remove(self) -> None:
        """Take the file away."""
        self._path.unlink(missing_ok=True)


def look(state_dir: Path) -> tuple[bool, str]:
    """Return whether the workers under `state_dir` are well, and one line that says why."""
    reports = []
    for path in sorted((state_dir / "run").glob("*.json")):
        try:
            report = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if alive(int(report.get("pid", 0))):
            reports.append(report)
        else:
            # Left behind by a kill -9.
            path.unlink(missing_ok=True)
    if not reports:
        return False, f"no worker is running here (looked in {state_dir / 'run'})"
    now = time.time()
    workers = [report for report in reports if "parent_of" not in report]
    for report in reports:
        age = now - float(report.get("at", 0))
        if age > STALE_SECONDS:
            return False, f"worker {report['pid']} has not reported for {age:.0f} s"
        if not report.get("healthy"):
            return False, report.get("trouble") or f"worker {report['pid']} has a loop that stands still"
    return True, f"ok: {len(workers)} worker process{'' if len(workers) == 1 else 'es'}"


def alive(pid: int) -> bool:
    """Whether a process with this id runs on this machine, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
