"""What a process tells the process manager that started it: PM2's `wait_ready`, systemd's `Type=notify` and watchdog.

The standard library alone: the small parent of `start --processes` uses it, too.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

VARIABLES = ("NODE_CHANNEL_FD", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Meant for the process that the manager started: its children must neither see nor use them."""

_EXTENSION = 30_000_000


class Manager:
    """The channel to a process manager; every method does nothing where there is none, and never raises.

    Takes its variables out of `environment`, so that no child can speak in this process's name.
    """

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        found = os.environ if environment is None else environment
        channel, address, watchdog, watched = (found.pop(name, "") for name in VARIABLES)
        self._channel = int(channel) if channel.isdigit() else None
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watched = bool(watchdog) and watched in ("", str(os.getpid()))

    def ready(self) -> None:
        """All is running: PM2's `wait_ready` (its docs, "Graceful Start") and systemd's READY."""
        self._notify("READY=1\nSTATUS=running")
        if self._channel is not None:
            try:
                os.write(self._channel, b'"ready"\n')
            except OSError:
                self._channel = None

    def waiting(self, what: str) -> None:
        """Not ready yet, and not stuck: systemd's start-up time limit is extended by 30 s; `what`: one line."""
        self._notify(f"EXTEND_TIMEOUT_USEC={_EXTENSION}\nSTATUS={what}")

    def stopping(self) -> None:
        """The stop has begun."""
        self._notify("STOPPING=1\nSTATUS=stopping: running handlers may finish")

    def alive(self) -> None:
        """All is well; systemd's watchdog (WatchdogSec=) wants this more often than every half of its time."""
        if self._watched:
            self._notify("WATCHDOG=1")

    def _notify(self, state: str) -> None:
        # sd_notify(3): one datagram to the socket that the manager named.
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.connect(self._address)
                sender.sendall(state.encode())
        except OSError:
            return
