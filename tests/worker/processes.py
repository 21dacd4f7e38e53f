"""Real worker processes for tests, through `scripts/zygote.py`."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.helpers import wait_until
from tests.stages import settings_of

_ROOT = Path(__file__).parents[2]

NOTES = """
create table starts (key text not null, process int not null, at timestamptz not null default now());
create table effects (key text not null);
create function note_start(key text, process int) returns void language sql as
    $$ insert into starts (key, process) values (note_start.key, note_start.process) $$;
create function note_effect(key text) returns void language plpgsql as
    $$ begin insert into effects (key) values (note_effect.key); end $$;
select queue_worker.allow_function('public.note_start'), queue_worker.allow_function('public.note_effect');
"""
"""What the handlers of the processes write into; `note_effect` commits together with the ack."""


class Process:
    """One worker process; `pid`, its exit `code` (None while it lives), and the events it emitted."""

    def __init__(self, zygote: Zygote, pid: int, log: Path) -> None:
        self._zygote = zygote
        self.pid = pid
        self._log = log

    @property
    def code(self) -> int | None:
        return self._zygote.codes.get(self.pid)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The fields of the events called `name` so far."""
        lines = self._log.read_text().splitlines(keepends=True) if self._log.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [fields for event, fields in found if event == name]

    def said(self) -> str:
        """What it wrote to stdout and stderr."""
        path = Path(str(self._log) + ".out")
        return path.read_text() if path.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def ended(self, seconds: float = 30) -> int:
        """Wait for its end; returns the exit code, negative for a signal."""
        wait_until(lambda: self.code is not None, seconds, self.said)
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        if self.code is None:
            self.signal(signal.SIGKILL)
            self.ended()


class Zygote:
    """The process that starts worker processes; one serves many tests."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("QUEUE_WORKER_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.worker.scripts.zygote"],
            cwd=_ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.codes: dict[int, int] = {}
        self._pids: dict[int, int] = {}
        self._ids = itertools.count()
        self._started: list[Process] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if "id" in said:
                self._pids[said["id"]] = said["pid"]
            else:
                self.codes[said["pid"]] = said["code"]

    def start(
        self,
        dsn: str,
        folder: Path,
        queues: Sequence[str] = ("work",),
        *,
        options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Process:
        """Start a worker of `queues`; `options` are those of the decorator, `settings` as on the command line."""
        number = next(self._ids)
        log = folder / f"worker-{number}.log"
        order = {
            "id": number,
            "database": settings_of(dsn),
            "queues": list(queues),
            "options": {"cycle": 0.1, **(options or {})},
            "settings": settings,
            "log": str(log),
            "state": str(folder / f"state-{number}"),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        wait_until(lambda: number in self._pids, 30)
        process = Process(self, self._pids[number], log)
        self._started.append(process)
        return process

    def kill_all(self) -> None:
        for process in self._started:
            process.kill()
        self._started.clear()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._reader.join(10)
