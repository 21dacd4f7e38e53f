"""The end of the channel to our parent that a child of `start --processes` or `start --reload` holds."""

from __future__ import annotations

import os
import signal
import socket
import threading

from queue_worker.supervisor import Signals
from queue_worker.worker_process import ALIVE, HURRY, READY, STOP_INT


class ParentLink:
    """Passes the parent's wishes on to `signals` and tells it how this process is.

    The parent's death closes the channel, whatever killed it, and is the same as its wish to stop.
    """

    def __init__(self, descriptor: int, signals: Signals) -> None:
        os.set_inheritable(descriptor, False)  # a child of ours must not hold the channel open
        self._socket = socket.socket(fileno=descriptor)
        self._signals = signals
        self._lock = threading.Lock()
        self._working = False
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def working(self) -> None:
        """From here on the service heeds `signals`; before, a wish to stop ends the process, which holds nothing."""
        with self._lock:
            self._working = True

    def ready(self) -> None:
        """Tell the parent."""
        self._tell(READY)

    def waiting(self, what: str) -> None:
        """The parent waits until we are ready."""

    def stopping(self) -> None:
        """The parent sees our end."""

    def alive(self) -> None:
        """Tell the parent."""
        self._tell(ALIVE)

    def _tell(self, word: bytes) -> None:
        try:
            self._socket.send(word, socket.MSG_DONTWAIT)
        except OSError:
            return  # gone: `_listen` sees it; full: it does not read, and needs no more words

    def _listen(self) -> None:
        while True:
            try:
                word = self._socket.recv(1)
            except OSError:
                word = b""
            if word == HURRY:
                self._signals.hurry()
            else:
                self._stop(signal.SIGINT if word == STOP_INT else signal.SIGTERM)
            if not word:
                return

    def _stop(self, number: int) -> None:
        with self._lock:
            if not self._working:
                os._exit(0)
        self._signals.request(number)
