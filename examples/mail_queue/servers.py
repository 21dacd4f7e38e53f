"""The world outside of the show: a mail server that can be ill, and somebody who listens for alerts."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from queue_worker.demo_smtp import CaptureServer


class MailServer(CaptureServer):
    """A real SMTP server on this machine, which keeps what it takes.

    `answers`: what it says to a recipient instead of `250`, by address. `asked`: how often each one was named to it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.answers: dict[str, str] = {}
        self.asked: Counter[str] = Counter()

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        """Take or refuse one recipient; called by aiosmtpd."""
        self.asked[address] += 1
        answer = self.answers.get(address)
        if answer is None:
            envelope.rcpt_tos.append(address)
        return answer or "250 2.1.5 OK"

    def to(self, address: str) -> list[str]:
        """The subjects of the mails that this recipient got."""
        return [str(one.message["Subject"]) for one in self.received if address in one.recipients]


@contextmanager
def listener() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Listen for webhooks while the block runs; gives the URL and the documents that came."""
    heard: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="webhooks")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/alerts", heard
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
