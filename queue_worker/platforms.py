"""What needs a POSIX system says so in one line where there is none."""

from __future__ import annotations

import sys

from queue_worker.errors import ConfigError


def require_posix(what: str) -> None:
    """Raise ConfigError on Windows, which has no fork, process groups or file locks as `what` needs them."""
    if sys.platform == "win32":
        raise ConfigError(f"{what} needs Linux or macOS; on Windows, use a container or WSL")
