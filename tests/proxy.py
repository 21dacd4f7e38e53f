"""A TCP proxy in front of Postgres that can cut, swallow, and drop a reply."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from typing import Any, Self

_READY = b"Z\x00\x00\x00\x05"
"""ReadyForQuery, the end of every reply (PostgreSQL protocol, message formats); the next byte is the state."""


class Link:
    """One connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.swallow = False
        self.drop_reply = False
        self.reply = b""

    def close(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Proxy:
    """Listens on a port of 127.0.0.1 and passes everything to `target` (host, port), until told otherwise."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.dropped = 0
        self._swallowing = False
        self._needles: list[bytes] = []
        self._lock = threading.Lock()
        self._links: list[Link] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)

    def url(self, url: str) -> str:
        """Return a TCP `url` of the target so that it goes through here."""
        return re.sub(r"@[^/]*/", f"@127.0.0.1:{self.port}/", url)

    def cut(self) -> None:
        """Close every connection; new ones pass."""
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            link.close()

    def blackhole(self) -> None:
        """Swallow everything from now on, on old connections and new ones; nobody gets a FIN."""
        with self._lock:
            self._swallowing = True
            for link in self._links:
                link.swallow = True

    def heal(self) -> None:
        """Let new connections pass; those that were swallowed stay silent for ever."""
        self._swallowing = False

    def drop_reply(self, needle: bytes) -> None:
        """Let the next request that contains `needle` through, keep its whole reply back, and cut the connection."""
        self._needles.append(needle)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.target, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            link = Link(client, server)
            with self._lock:
                link.swallow = self._swallowing
                self._links.append(link)
            self._start(self._requests, link)
            self._start(self._replies, link)

    def _requests(self, link: Link) -> None:
        while data := _receive(link.client):
            for needle in list(self._needles):
                if needle in data and not link.swallow:
                    self._needles.remove(needle)
                    link.drop_reply = True
            if not link.swallow:
                with contextlib.suppress(OSError):
                    link.server.sendall(data)
        # The far end of a swallowed connection learns nothing, as behind a dead router.
        if not link.swallow:
            link.close()

    def _replies(self, link: Link) -> None:
        while data := _receive(link.server):
            if link.swallow:
                continue
            if link.drop_reply:
                link.reply += data
                if link.reply[-6:-1] == _READY:
                    self.dropped += 1
                    break
                continue
            with contextlib.suppress(OSError):
                link.client.sendall(data)
        if not link.swallow:
            link.close()


def _receive(end: socket.socket) -> bytes:
    try:
        return end.recv(65536)
    except OSError:
        return b""
