"""What the show needs around it: the worker as a service of its own, the admin CLI, and an endpoint on the network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg

from examples.stage import until
from examples.typed_tasks.catalogue import QUEUES

ROOT = Path(__file__).resolve().parents[2]
_COMMAND = [sys.executable, "-m", "queue_worker"]


def prepare(connection: psycopg.Connection[Any]) -> None:
    """Make the tables and the queues of the example, and two dispatchers of the event `order.paid`."""
    connection.execute((Path(__file__).parent / "schema.sql").read_bytes())
    for queue in QUEUES:
        connection.execute("select queue_worker.create_queue(%s)", [queue])
    connection.execute(
        "insert into typed_tasks.dispatchers (event_name, recipient, delays) values"
        " ('order.paid', 'ann@example.com', '{0.02, 0.02}'), ('order.paid', 'bob@example.com', '{0.02}')"
    )


class Service:
    """`queue-worker` in a folder of its own: as a service that runs beside the show, and as single commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "worker.log"
        self.api = ""

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run `queue-worker start` with the API while the block runs; killed at its end if it still runs."""
        arguments = ["start", "--app", "examples.typed_tasks.jobs:app", "--with-api", "--port", "0"]
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [*_COMMAND, *arguments], cwd=self.folder, env=self._environment(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self.api = until(lambda: self._address(process), "the worker is ready")
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def _address(self, process: subprocess.Popen[bytes]) -> str | None:
        text = self.log.read_text()
        if process.poll() is not None:
            sys.exit(f"the worker ended with exit code {process.returncode}:\n{text}")
        found = re.search(r"API and dashboard at (\S+)", text)
        return found[1] if found and " ready " in text else None

    def __call__(self, *arguments: str) -> Any:
        """Run one command of the admin CLI to its end and return its JSON document; ends the program if it fails."""
        print("  $ queue-worker", *arguments, flush=True)
        done = subprocess.run(
            [*_COMMAND, *arguments, "--json"], cwd=self.folder, env=self._environment(),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            sys.exit(f"exit code {done.returncode}: {done.stderr}")
        return json.loads(done.stdout)

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "PYTHONPATH": path, "QUEUE_WORKER_STATE_DIR": str(self.folder)}


class Endpoint:
    """An HTTP server that answers `GET /jobs` with HTTP 500 `failures` times and then with a list; 404 elsewhere.

    `pages` are the paths that it knows: add one, and it is there.
    """

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.pages = {"/jobs"}
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.path in endpoint.pages
                if known and endpoint.failures > 0:
                    endpoint.failures -= 1
                    self.send_error(500)
                    return
                body = b'["a", "b"]'
                self.send_response(200 if known else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: Any) -> None:
                """Say nothing: the output belongs to the show."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="endpoint")

    def __enter__(self) -> Endpoint:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
