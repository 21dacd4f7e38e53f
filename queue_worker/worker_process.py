"""A worker process as its parent sees it, and the wishes that reach the parent by signal.

The standard library alone: the parent is to stay small.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from types import FrameType

STOP_INT, STOP_TERM, HURRY = b"I", b"T", b"!"
"""What a parent says: stop as after SIGINT or SIGTERM, and end at once."""

READY, ALIVE = b"R", b"A"
"""What a child says: all is running, all is well."""

REPEAT_SECONDS = 1.0
"""A second signal within this time is the same one: a terminal and a process manager both send it."""


class Wishes:
    """SIGINT and SIGTERM as the parent has received them, and SIGUSR1 (`roll`); `wait` returns when one arrives."""

    def __init__(self) -> None:
        self.count = 0
        self.number = 0
        self.roll = False
        self._last = 0.0
        self._reader, self._writer = socket.socketpair()

    @contextlib.contextmanager
    def received(self) -> Iterator[None]:
        """Receive signals while the block runs; for the main thread. After it the process ends, and ignores them."""
        for end in (self._reader, self._writer):
            end.setblocking(False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, self._handle)
        before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # One more Ctrl+C must not turn a clean exit into a crash.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)
            self._reader.close()
            self._writer.close()

    def wait(self, seconds: float, *others: socket.socket) -> None:
        """Wait until a signal arrives (the end of a child is one) or one of `others` has something to read."""
        readable, _, _ = select.select([self._reader, *others], [], [], max(0.0, seconds))
        if self._reader in readable:
            with contextlib.suppress(BlockingIOError):
                while self._reader.recv(4096):
                    pass

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.roll = True
        elif number != signal.SIGCHLD:
            now = time.monotonic()
            if self.count == 0 or now - self._last > REPEAT_SECONDS:
                self.count += 1
                self.number = number
                self._last = now


class Child:
    """A running worker process."""

    def __init__(self, command: Sequence[str], number: int) -> None:
        self.channel, theirs = socket.socketpair()
        with theirs:
            # A process group of its own: a Ctrl+C at the terminal reaches the parent alone, which passes it on once.
            self._process = subprocess.Popen(
                [*command, "--child", f"{number}:{theirs.fileno()}"],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        self.channel.setblocking(False)
        self.started = self.heard = time.monotonic()
        self.ready = False
        self.listening = True

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ended(self) -> int | None:
        """Return its exit code once it has ended (negative: the signal that killed it), and let go of it."""
        code = self._process.poll()
        if code is not None:
            self.listen()
            self.listening = False
            self.channel.close()
        return code

    def listen(self) -> None:
        """Take in what it has said; `listening` is false once it can say no more."""
        try:
            words = self.channel.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            words = b""
        if words:
            self.ready = self.ready or READY in words
            self.heard = time.monotonic()
        else:
            self.listening = False

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask it to stop as after the first signal `number`."""
        self._tell(STOP_INT if number == signal.SIGINT else STOP_TERM)

    def hurry(self) -> None:
        """Ask it to end at once; after `stop`."""
        self._tell(HURRY)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._process.kill()

    def _tell(self, word: bytes) -> None:
        with contextlib.suppress(OSError):
            self.channel.send(word)
