"""The files by which PM2, systemd and Docker Compose run the worker, written for one environment."""

from __future__ import annotations

import os
import pwd
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from queue_worker.errors import UsageError

_TEMPLATES = Path(__file__).parent / "templates" / "deploy"

FILES = {"pm2": "ecosystem.config.js", "systemd": "queue-worker.service", "compose": "compose.yaml"}
"""The file of each kind."""

NEXT = {
    "pm2": "next: pm2 start ecosystem.config.js",
    "systemd": "next: sudo cp queue-worker.service /etc/systemd/system/ && sudo systemctl enable --now queue-worker",
    "compose": "next: docker compose up -d",
}
"""What to do with it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the worker runs. `program`: its console script; times in seconds; `user`: empty for root."""

    folder: Path
    program: Path
    user: str
    grace: float
    stop_timeout: float

    @classmethod
    def here(cls, grace: float, stop_timeout: float) -> Place:
        """Return the working directory and the environment that this process runs in; raises UsageError."""
        program = Path(sys.executable).parent / "queue-worker"
        if not program.exists():
            raise UsageError(f"{program} does not exist: install queue-worker into this environment")
        user = pwd.getpwuid(os.getuid()).pw_name if os.getuid() else ""
        return cls(Path.cwd(), program, user, grace, stop_timeout)


def render(kind: str, place: Place) -> str:
    """Return the text of the file of `kind` (see FILES) for `place`; raises UsageError for a path it cannot hold."""
    if kind == "systemd" and re.search(r"[\x00-\x1f\x7f]", f"{place.folder}{place.program}"):
        raise UsageError("systemd allows no control characters in paths: move the folder")
    environment = Environment(  # noqa: S701 - none of the files is HTML; the values are quoted below
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.get_template(f"{FILES[kind]}.j2").render(
        arguments="start",
        script=os.path.relpath(place.program, place.folder),
        command=f"{_unit_word(place.program)} start",
        folder=str(place.folder).replace("%", "%%"),
        writable=_unit_word(place.folder),
        user=place.user,
        grace=f"{place.grace:g}",
        stop_timeout=f"{place.stop_timeout:g}",
        milliseconds=f"{place.stop_timeout * 1000:.0f}",
        dockerfile=(place.folder / "Dockerfile").exists(),
    )


def _unit_word(path: Path) -> str:
    """Return a path as one word of a unit file (systemd.syntax(7), "Quoting"; systemd.unit(5), "Specifiers")."""
    text = str(path).replace("%", "%%").replace("$", "$$")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if re.search(r"[\s\"'\\]", text) else text
