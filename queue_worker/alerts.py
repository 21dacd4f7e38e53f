"""Looks for what is wrong and tells people: a thread of each worker, one of which checks at a time.

SQL `check_alerts` opens and clears alerts, and hands each notice to one process for a minute. What that process could
not deliver, or died over, another one gets then.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from typing import Any

from queue_worker import events
from queue_worker.alert_delivery import Notice, Teller, Undelivered, channels_of
from queue_worker.config import Settings
from queue_worker.errors import TransportError, TransportUnavailable
from queue_worker.transport import Transport

_KEPT_SECONDS = 5.0
"""A connection is kept over waits shorter than this."""

_LEASE_SECONDS = 60.0
"""How long a process has for the first delivery of a notice."""

_ENOUGH_SECONDS = 25.0
"""After so long on one notice no further channel is begun; the slowest takes 30."""


class Alerts:
    """The thread that looks every `alert_check_seconds`; over a connection that is its own."""

    def __init__(self, transport: Transport, settings: Settings) -> None:
        self._transport = transport
        self._every = settings.alert_check_seconds
        self._rules = {**settings.alert_rules, "every": self._every, "lease": _LEASE_SECONDS}
        self._channels: Mapping[str, Teller] = channels_of(settings)
        self._ending = threading.Event()

    def run(self) -> None:
        """Work until `stop`; what fails is tried again at the next look."""
        # Workers that start together take turns.
        while not self._ending.wait(self._every * random.uniform(0.8, 1.2)):  # noqa: S311
            try:
                self.step()
            except TransportUnavailable:
                # The loops report the outage.
                pass
            except TransportError as error:
                events.emit("alert.error", error=str(error))
            if self._every >= _KEPT_SECONDS:
                self._transport.close()
        self._transport.close()

    def stop(self) -> None:
        """End `run` after the delivery under way."""
        self._ending.set()

    def step(self) -> None:
        """Check once, and deliver what is ours to deliver. Raises TransportUnavailable or CallRefused."""
        # One is handed out at a time; it looks again as often as that, but SQL does not, within half of `every`.
        while not self._ending.is_set():
            rows = self._call("check_alerts", rules=self._rules)
            if not rows:
                return
            self._deliver(rows[0])

    def _deliver(self, row: dict[str, Any]) -> None:
        notice = Notice(*(row[field] for field in Notice._fields))
        left = [channel for channel in self._channels if channel not in row["channels"]]
        missed = False
        since = time.monotonic()
        for number, channel in enumerate(left, 1):
            try:
                if time.monotonic() - since > _ENOUGH_SECONDS:
                    # It would be telling while somebody else does.
                    raise Undelivered("the channels before it took too long")
                self._channels[channel](notice)
            except Exception as error:  # of a channel: it must end neither the thread nor the other channels
                missed = True
                text = str(error) if isinstance(error, Undelivered) else f"{type(error).__name__}: {error}"
                again = "no more" if row["last"] else "later"
                events.emit("alert.undelivered", alert=notice.name, channel=channel, error=text, again=again)
            else:
                if number < len(left) or missed:
                    self._note(row, channel)
        if not missed:
            self._note(row, None)

    def _note(self, row: dict[str, Any], channel: str | None) -> None:
        receipt = {"alert_id": row["alert_id"], "event": row["event"], "attempt": row["attempt"]}
        self._call("alert_delivered", **receipt, channel=channel)

    def _call(self, function: str, **params: Any) -> list[dict[str, Any]]:
        return self._transport.call(f"queue_worker.{function}", params).dicts()
