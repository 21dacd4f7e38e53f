"""The demo's worker: `queue-worker start` that ends with the process that started it, even by kill -9."""

from __future__ import annotations

import os
import signal
import sys
import threading

from queue_worker.cli import leave, run

_LAST_SECONDS = 5.0


def _follow_parent() -> None:
    # The demo holds the other end of our standard input and never writes: its end is the end of the demo.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(_LAST_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_follow_parent, name="follow-parent", daemon=True).start()
    leave(run(["start", *sys.argv[1:]]))
