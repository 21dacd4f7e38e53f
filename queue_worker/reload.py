"""`start --reload`: one worker that is started anew whenever a file of the app changes. For development."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from watchfiles import Change, watch

from queue_worker.plain_log import PlainLog
from queue_worker.processes import Plan, worst
from queue_worker.worker_process import Child, Wishes

_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "build", "dist"})
_LOOK_MILLISECONDS = 200


class Reloader:
    """Runs the one worker of a plan; `run` returns the exit code once a signal has ended it."""

    def __init__(self, plan: Plan, app: str) -> None:
        self._plan = plan
        self._module = app.partition(":")[0]
        self._log = PlainLog(plan.log_json, plan.log_level)
        self._wishes = Wishes()

    def run(self) -> int:
        """Start the worker, and again after each change, until SIGINT or SIGTERM."""
        with self._wishes.received():
            while True:
                folders = app_folders(self._module)
                changes = watch(
                    *folders,
                    watch_filter=_is_source,
                    debounce=300,
                    rust_timeout=_LOOK_MILLISECONDS,
                    yield_on_timeout=True,
                    raise_interrupt=False,
                    recursive=False,
                )
                # Watching begins with the first look; only then is the worker started, so that no change is missed.
                next(changes)
                child = Child(self._plan.command, 0)
                self._log.info("watching for changes", folders=len(folders), pid=child.pid)
                changed = self._until_changed(child, changes)
                code = self._stop(child)
                if not changed:
                    return code
                self._log.info("changed, starting again", file=changed)

    def _until_changed(self, child: Child, changes: Iterator[set[tuple[Change, str]]]) -> str:
        """Wait for a change and return its file; an empty string once a signal asks for the end."""
        ended = False
        for found in changes:
            if self._wishes.count:
                break
            child.listen()
            if not ended and (code := child.ended()) is not None:
                ended = True
                self._log.error("the worker has ended, it starts again when a file changes", code=code)
            if found:
                path = Path(min(file for _, file in found))
                return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
        return ""

    def _stop(self, child: Child) -> int:
        """Stop the worker; returns the exit code of the whole."""
        child.stop(self._wishes.number)
        asked, hurried = max(self._wishes.count, 1), False
        deadline = time.monotonic() + self._plan.grace + 5.0
        while (code := child.ended()) is None:
            self._wishes.wait(1.0)
            if self._wishes.count > asked and not hurried:
                hurried = True
                child.hurry()
                deadline = time.monotonic() + 4.0
            if time.monotonic() > deadline or self._wishes.count > asked + 1:
                child.kill()
        return 128 + self._wishes.number if hurried else worst([code])


def app_folders(module: str) -> list[Path]:
    """Return the folders with the source of an app's `module`: those of its package, or around its file."""
    if os.getcwd() not in sys.path[:1]:
        sys.path.insert(0, os.getcwd())
    spec = importlib.util.find_spec(module.partition(".")[0])
    places = list(spec.submodule_search_locations or ()) if spec else []
    roots = [Path(place) for place in places] or [Path(spec.origin).parent if spec and spec.origin else Path.cwd()]
    # Whatever the package imports from beside it in the working directory belongs to the app, too.
    roots = [Path.cwd() if root.is_relative_to(Path.cwd()) else root for root in roots]
    return sorted({folder for root in roots for folder in _source_folders(root)})


def _source_folders(root: Path) -> Iterator[Path]:
    for folder, names, _ in os.walk(root):
        yield Path(folder)
        names[:] = [
            name
            for name in names
            if name not in _SKIPPED and name[0] != "." and not (Path(folder) / name / "pyvenv.cfg").exists()
        ]


def _is_source(_change: Change, path: str) -> bool:
    return path.endswith(".py") or os.path.basename(path) == ".env"
