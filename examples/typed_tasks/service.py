"""What the show needs around it: the worker as a service of its own, the admin CLI, and an endpoint on the network."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg

from examples.serving import Program, worker
from examples.typed_tasks.catalogue import QUEUES
from queue_worker.cli import run


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
    """`queue-worker start` with the HTTP API, beside the show; `api` is its address. Its log is in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "worker.log"
        self.api = ""

    @contextmanager
    def running(self) -> Iterator[Program]:
        """Run it while the block runs; killed at its end if it still runs."""
        arguments = ("--app", "examples.typed_tasks.jobs:app", "--with-api", "--port", "0")
        try:
            with worker(*arguments, log=self.log) as program:
                self.api = program.url()
                yield program
        except BaseException:
            # Who looks for the reason finds it here; the folder is gone in a moment.
            print(self.log.read_text()[-4000:], file=sys.stderr)
            raise


def cli(*arguments: str) -> Any:
    """Run one command of the admin CLI, without a process of its own, and return its JSON document.

    Ends the program if the command fails.
    """
    print("  $ queue-worker", *arguments, flush=True)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = run([*arguments, "--json"])
    if code != 0:
        sys.exit(f"exit code {code}")
    return json.loads(output.getvalue())


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
