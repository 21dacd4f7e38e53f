"""What the tests of the worker share: apps of one handler, doors for handlers to wait at."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from queue_worker import App, Job
from tests.helpers import Running, wait_until
from tests.sql.engine import Engine


def app_of(handler: Callable[[Job[dict[str, Any]]], Any], *queues: str, **options: Any) -> App:
    """An app that runs `handler` for `queues` (default: work), looking every 0.1 s."""
    app = App(builtins=False)
    for queue in queues or ("work",):
        app.processor(queue, **{"cycle": 0.1, **options})(handler)
    return app


class Door:
    """A handler that waits at a closed door; tells who stands there, and lets all pass when it is opened."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._lock = threading.Lock()
        self.inside: list[int] = []
        self.arrived = 0

    def wait(self, msg_id: int = 0) -> None:
        with self._lock:
            self.inside.append(msg_id)
            self.arrived += 1
        assert self._open.wait(60), "nobody opened the door"
        with self._lock:
            self.inside.remove(msg_id)

    def reached(self, count: int = 1) -> None:
        """Wait until `count` handlers have come in all."""
        wait_until(lambda: self.arrived >= count, 20, lambda: f"{self.arrived} of {count} came")

    def open(self) -> None:
        self._open.set()


def hurry(engine: Engine) -> None:
    """Let what was given back or is to be retried be due now; leases stay as they are."""
    engine.rows(
        "update pgmq.q_QUEUE m set vt = now() from queue_worker_data.trouble t"
        " where t.queue = 'QUEUE' and t.msg_id = m.msg_id and t.settled_ct = m.read_ct and m.vt > now()"
    )


def turns(worker: Running, queue: str, count: int = 3) -> None:
    """Wait until the loop of `queue` has looked around `count` more times."""
    found = wait_until(lambda: [one for one in worker.service.workers if one.queue == queue], 20)
    (loop,) = found
    for _ in range(count):
        before = loop.last_turn
        wait_until(lambda before=before: loop.last_turn != before, 20)
