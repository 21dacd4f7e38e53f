"""What tests share beside fixtures."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from queue_worker import App
from queue_worker.config import load_settings
from queue_worker.service import Service
from tests.stages import settings_of


def wait_until(condition: Callable[[], Any], seconds: float = 10.0, why: Callable[[], str] | str = "") -> Any:
    """Wait until `condition` is true and return its value; fails with `why` after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {why() if callable(why) else why or condition}")
        time.sleep(0.01)


def child_processes() -> set[int]:
    """The process ids of this process's living children, without the one that all tests share (`forks`)."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    shared = sys.modules.get("tests.blackbox.forks")
    return {pid for pid in found if not _zombie(pid)} - {getattr(shared, "pid", None)}


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


class Running:
    """A service that runs in a thread of this process."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.code: int | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="service")
        self._thread.start()

    def _run(self) -> None:
        try:
            self.code = self.service.run()
        except BaseException as error:
            self.error = error

    def stop(self, seconds: float = 40.0) -> int | None:
        """Stop as the first signal does; returns the exit code, raises what `run` raised."""
        self.service.stop()
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the service did not stop"
        if self.error is not None:
            raise self.error
        return self.code


@contextlib.contextmanager
def running(dsn: str, app: App, **settings: Any) -> Iterator[Running]:
    """Run a real worker on `dsn` while the block runs; `settings` are overrides as on the command line."""
    overrides = {**settings_of(dsn), "state_dir": Path(os.getcwd()) / ".queue-worker", **settings}
    worker = Running(Service(load_settings(overrides), app))
    try:
        yield worker
    finally:
        worker.stop()
