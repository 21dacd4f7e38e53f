"""A local Resend: POST /emails with idempotency keys as its documentation says, on a real socket.

A key is kept with its request: the same request again gets the first answer and sends nothing, another one gets 409
invalid_idempotent_request. Scripted answers say how the next requests end; nothing is kept for an error.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "re_" + "x" * 24


class ResendServer:
    """`accepted` holds the mails that were taken, `requests` every request: key, headers, body."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.accepted: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.script: deque[dict[str, Any]] = deque()
        self._keys: dict[str, tuple[bytes, bytes]] = {}
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer = owner.handle(self.path, dict(self.headers.items()), body)
                if answer is None:
                    self.close_connection = True
                    return
                self.reply(*answer)

            def do_GET(self) -> None:
                if self.headers.get("Authorization") != f"Bearer {KEY}":
                    self.reply(403, {"name": "invalid_api_key", "message": "API key is invalid"}, {})
                elif owner.script:
                    step = owner.script.popleft()
                    self.reply(step["status"], step["error"], {})
                else:
                    self.reply(200, {"data": []}, {})

            def reply(self, status: int, content: dict[str, Any], headers: dict[str, str]) -> None:
                text = json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        self.url = f"http{'s' if tls else ''}://localhost:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, status: int, name: str = "", message: str = "scripted", **more: Any) -> None:
        """The next request ends like this. more: headers; send (true: take the mail before that answer)."""
        self.script.append({"status": status, "error": {"name": name, "message": message}, **more})

    def drop(self, times: int = 1) -> None:
        """The next requests are handled, and their answers are lost."""
        self.script.extend({"drop": True} for _ in range(times))

    def forget_keys(self) -> None:
        """Forget the idempotency keys, as Resend does after 24 hours."""
        self._keys.clear()

    def handle(
        self, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, Any], dict[str, str]] | None:
        """Return status, body and headers of the answer; None: the connection ends without one."""
        with self._lock:
            self.requests.append({"path": path, "headers": headers, "body": json.loads(body)})
            if headers.get("Authorization") != f"Bearer {KEY}":
                return 403, {"name": "invalid_api_key", "message": f"API key {headers['Authorization']} is invalid"}, {}
            step = self.script.popleft() if self.script else {}
            if "status" in step and not step.get("send"):
                return step["status"], step["error"], step.get("headers", {})
            answer = self._send(headers.get("Idempotency-Key", ""), body)
            if step.get("drop"):
                return None
            return (step["status"], step["error"], step.get("headers", {})) if "status" in step else answer

    def _send(self, key: str, body: bytes) -> tuple[int, dict[str, Any], dict[str, str]]:
        known = self._keys.get(key)
        if known is not None and known[0] != body:
            return 409, {"name": "invalid_idempotent_request", "message": "The key was used with another payload"}, {}
        if known is None:
            self.accepted.append(json.loads(body))
            known = self._keys[key] = (body, json.dumps({"id": f"mail-{len(self.accepted)}"}).encode())
        return 200, json.loads(known[1]), {}
