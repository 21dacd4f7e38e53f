"""A hundred mails through queue `email` to a local SMTP server, at default settings, from a started idle worker.

    python bench/mail.py [--mails 100]

Reference in the same run: smtplib alone, one connection, the same hundred mails.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
from email.message import EmailMessage
from pathlib import Path

import psycopg
from aiosmtpd.controller import Controller

from queue_worker import embedded, migrate


class Capture:
    def __init__(self) -> None:
        self.count = 0

    async def handle_DATA(self, _server: object, _session: object, _envelope: object) -> str:  # noqa: N802
        self.count += 1
        return "250 kept"


def bare(port: int, count: int) -> float:
    start = time.perf_counter()
    with smtplib.SMTP("127.0.0.1", port) as client:
        for number in range(count):
            mail = EmailMessage()
            mail["From"], mail["To"], mail["Subject"] = "a@example.com", f"u{number}@example.com", "Hello"
            mail.set_content("Hi")
            client.send_message(mail)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mails", type=int, default=100)
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    capture = Capture()
    controller = Controller(capture, hostname="127.0.0.1", port=port)
    controller.start()
    folder = Path(tempfile.mkdtemp())
    with embedded.ensure(folder) as server:
        migrate.up(server.url)
        environment = {
            **os.environ,
            "DATABASE_URL": server.url,
            "QUEUE_WORKER_STATE_DIR": str(folder / "state"),
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(port),
            "SMTP_FROM_EMAIL": "a@example.com",
        }
        worker = subprocess.Popen(
            [sys.executable, "-m", "queue_worker", "start", "-q", "email"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with psycopg.connect(server.url, autocommit=True) as connection:
                time.sleep(5)
                messages = [
                    {"payload": {"to": f"u{n}@example.com", "subject": "Hello", "text": "Hi"}}
                    for n in range(args.mails)
                ]
                start = time.perf_counter()
                connection.execute(
                    "select count(*) from queue_worker.send_batch('email', %s::jsonb)", [json.dumps(messages)]
                )
                batch = time.perf_counter() - start
                start = time.perf_counter()
                while connection.execute("select count(*) from pgmq.a_email").fetchone()[0] < args.mails:
                    time.sleep(0.005)
                drained = time.perf_counter() - start
                assert capture.count == args.mails, f"{capture.count} mails for {args.mails} messages"
                start = time.perf_counter()
                for n in range(args.mails):
                    connection.execute(
                        "select queue_worker.send('email', %s::jsonb, delay_seconds => 3600)",
                        [json.dumps(messages[n]["payload"])],
                    )
                single = time.perf_counter() - start
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait()
        alone = bare(port, args.mails)
    controller.stop()
    embedded.stop(folder, delete=True)
    print(f"enqueue {args.mails}: one batch {batch * 1e3:.0f} ms, one by one {single * 1e3:.0f} ms")
    print(
        f"{args.mails} mails delivered and archived in {drained:.2f} s; smtplib alone {alone:.2f} s;"
        f" ratio {drained / alone:.1f}"
    )


if __name__ == "__main__":
    main()
