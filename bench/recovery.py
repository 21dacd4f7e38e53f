"""How soon a worker over REST works again when a fault is over; the bar is 5 seconds.

    python bench/recovery.py [--rounds 3] [--hole 30]

Each round sends a message while the fault lasts and takes the time from its end to the start of the handler. Reference
in the same run: the pickup without any fault.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
from project import sys  # noqa: F401  (puts the repository on the path)

from queue_worker import App, Job
from queue_worker.config import load_settings
from queue_worker.service import Service
from tests.own_server import OwnServer
from tests.supabase.postgrest import prepare_roles
from tests.supabase.project import Project, project


@contextlib.contextmanager
def working(made: Project) -> Iterator[threading.Event]:
    """Run a worker over REST; the event is set when a handler starts."""
    app = App(builtins=False)
    arrived = threading.Event()

    @app.processor("work")
    def handle(job: Job) -> None:
        arrived.set()

    service = Service(load_settings({**made.settings(), "state_dir": Path(tempfile.mkdtemp())}), app)
    thread = threading.Thread(target=service.run)
    thread.start()
    service.ready.wait(30)
    try:
        yield arrived
    finally:
        service.stop()
        thread.join()


def fill(own: OwnServer) -> None:
    with own.connect() as connection:
        connection.execute("insert into pgmq.q_work (vt, message) values (now(), '{}')")


def measure(label: str, own: OwnServer, made: Project, fault: Callable[[], None], rounds: int) -> None:
    values = []
    with working(made) as arrived:
        for _ in range(rounds):
            arrived.clear()
            fault()
            over = time.perf_counter()
            if not own.sent:
                fill(own)
            own.sent = False
            assert arrived.wait(60), label
            values.append(time.perf_counter() - over)
    print(f"{label}: median {statistics.median(values):.2f} s, worst {max(values):.2f} s", flush=True)


class Server(OwnServer):
    """`sent`: the message of this round was sent during the fault."""

    sent = False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hole", type=float, default=30)
    args = parser.parse_args()
    own = Server(Path(tempfile.mkdtemp()) / "pg")
    with own.connect() as connection:
        prepare_roles(own.url)
        password = psycopg.conninfo.conninfo_to_dict(own.url)["password"]
        connection.execute(psycopg.sql.SQL("alter role authenticator password {}").format(password))
        connection.execute("call queue_worker_data.lock_down()")
        connection.execute("select queue_worker.create_queue('work')")
    with project(own.url) as made:

        def postgrest_restarts() -> None:
            made.postgrest.kill()
            fill(own)
            own.sent = True
            time.sleep(5)
            made.postgrest.start()

        def postgres_restarts() -> None:
            own.crash(signal.SIGINT)  # a fast shutdown
            time.sleep(5)
            own.start()

        def replies_dropped() -> None:
            made.gateway.drop_every(1)
            fill(own)
            own.sent = True
            time.sleep(5)
            made.gateway.drop_every(0)

        def hole() -> None:
            made.gateway.black_hole(True)
            fill(own)
            own.sent = True
            time.sleep(args.hole)
            made.gateway.black_hole(False)

        measure("no fault             ", own, made, lambda: None, args.rounds)
        measure("PostgREST away 5 s   ", own, made, postgrest_restarts, args.rounds)
        measure("Postgres away 5 s    ", own, made, postgres_restarts, args.rounds)
        measure("all replies lost 5 s ", own, made, replies_dropped, args.rounds)
        measure(f"black hole of {args.hole:g} s   ", own, made, hole, args.rounds)
    own.close()


if __name__ == "__main__":
    main()
