"""The files by which PM2, systemd and Docker Compose run the worker, written for one environment."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from queue_worker.errors import UsageError
from queue_worker.platforms import require_posix

_TEMPLATES = Path(__file__).parent / "templates" / "deploy"

_NEXT = {
    "pm2": "next: pm2 start ecosystem.config.js",
    "systemd": "next: sudo cp {files} /etc/systemd/system/ && sudo systemctl enable --now {enable}",
    "compose": "next: docker compose up -d",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the worker runs. `program`: its console script; times in seconds; `user`: empty for root.

    `api`: whether the HTTP API can run there, which needs an extra.
    """

    folder: Path
    program: Path
    user: str
    grace: float
    stop_timeout: float
    api: bool = True

    @classmethod
    def here(cls, grace: float, stop_timeout: float) -> Place:
        """Return the working directory and the environment of this process; raises UsageError, ConfigError."""
        require_posix("init")
        import pwd

        program = Path(sys.executable).parent / "queue-worker"
        if not program.exists():
            raise UsageError(f"{program} does not exist: install queue-worker into this environment")
        user = pwd.getpwuid(os.getuid()).pw_name if os.getuid() else ""
        api = importlib.util.find_spec("uvicorn") is not None
        return cls(Path.cwd(), program, user, grace, stop_timeout, api)


def render(kind: str, place: Place) -> dict[str, str]:
    """Return the files of `kind`, pm2, systemd or compose, by name; raises UsageError for a path they cannot hold."""
    if kind == "systemd":
        if re.search(r"[\x00-\x1f\x7f]", f"{place.folder}{place.program}"):
            raise UsageError("systemd allows no control characters in paths: move the folder")
        return dict(_units(place))
    name = {"pm2": "ecosystem.config.js", "compose": "compose.yaml"}[kind]
    return {name: _text(f"{name}.j2", place)}


def next_step(kind: str, files: dict[str, str]) -> str:
    """Return the line that says what to do with what `render` has returned."""
    enable = [name.removesuffix(".service") for name in files if "@" not in name]
    return _NEXT[kind].format(files=" ".join(files), enable=" ".join(enable))


def _units(place: Place) -> Iterator[tuple[str, str]]:
    """The worker of all queues, one that runs the queue behind its @ alone, and the API."""
    worker = "queue_worker, the worker of the pgmq queues"
    yield "queue-worker.service", _unit(place, worker, "start", "queue-worker")
    # %i is the text behind the @ as it stands, so that a name may have dashes.
    template = "queue_worker, the worker of queue %i"
    yield "queue-worker@.service", _unit(place, template, "start -q %i", "queue-worker@email")
    if place.api:
        api = "queue_worker, the HTTP API and the dashboard"
        yield "queue-worker-api.service", _unit(place, api, "api", "queue-worker-api")


def _unit(place: Place, description: str, arguments: str, enable: str) -> str:
    worker = arguments != "api"
    return _text("unit.j2", place, description=description, arguments=arguments, enable=enable, worker=worker)


def _text(template: str, place: Place, **more: Any) -> str:
    environment = Environment(  # noqa: S701 - none of the files is HTML; the values are quoted below
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.get_template(template).render(
        {
            "arguments": "start",
            "script": os.path.relpath(place.program, place.folder),
            "command": _unit_word(place.program),
            "folder": str(place.folder).replace("%", "%%"),
            "writable": _unit_word(place.folder),
            "user": place.user,
            "grace": f"{place.grace:g}",
            "stop_timeout": f"{place.stop_timeout:g}",
            "milliseconds": f"{place.stop_timeout * 1000:.0f}",
            "dockerfile": (place.folder / "Dockerfile").exists(),
            "api": place.api,
            **more,
        }
    )


def _unit_word(path: Path) -> str:
    """Return a path as one word of a unit file (systemd.syntax(7), "Quoting"; systemd.unit(5), "Specifiers")."""
    text = str(path).replace("%", "%%").replace("$", "$$")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if re.search(r"[\s\"'\\]", text) else text
