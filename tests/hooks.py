"""A real HTTP(S) server that takes webhooks and keeps them, and does what a test says."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Hook(NamedTuple):
    """One request as it came."""

    path: str
    host: str
    body: dict[str, Any]


class Hooks(ThreadingHTTPServer):
    """Listens on 127.0.0.1 (`address`), on a free port; `answers`: status codes of the next answers, then 200."""

    daemon_threads = True
    block_on_close = True

    def __init__(self, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1") -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.got: list[Hook] = []
        self.answers: list[int] = []
        self.headers: dict[str, str] = {}
        self.write: Callable[[Any], None] | None = None
        self.connections = 0
        self._tls = tls
        super().__init__((address, 0), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook/s3cret-path"

    def get_request(self) -> tuple[Any, Any]:
        taken, address = super().get_request()
        self.connections += 1
        return taken, address

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        if self._tls is not None:
            try:
                request = self._tls.wrap_socket(request, server_side=True)
            except OSError:
                request.close()
                return
        super().process_request_thread(request, client_address)

    def __enter__(self) -> Hooks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    server: Hooks

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append(Hook(self.path, self.headers["Host"], body))
        if self.server.write is not None:
            self.server.write(self.wfile)
            return
        self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        """Nothing."""
