"""What a worker has from being a process of its own, which one inside another program has not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from queue_worker.manager import Manager
from queue_worker.recycling import Recycling
from queue_worker.supervisor import Signals


class Told(Protocol):
    """Who is told how the worker is: a process manager (`manager.Manager`) or our own parent (`parent_link`)."""

    def ready(self) -> None:
        """It runs."""

    def waiting(self, what: str) -> None:
        """It does not run yet; called again and again. `what`: one line."""

    def stopping(self) -> None:
        """The stop has begun."""

    def alive(self) -> None:
        """All is well; called about every five seconds."""


@dataclass(slots=True)
class Host:
    """Signals, whom to tell, and a bound on the life of the process; the defaults are those of an embedded service."""

    signals: Signals = field(default_factory=Signals)
    manager: Told = field(default_factory=lambda: Manager({}))
    recycling: Recycling = field(default_factory=Recycling)
