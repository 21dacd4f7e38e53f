"""The API as a process: alone and beside a worker, its addresses, its end, and a database that goes away."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from queue_worker.api import backend
from tests.api.served import TOKEN, served
from tests.blackbox.program import COMMAND, Program
from tests.helpers import wait_until
from tests.own_server import OwnServer
from tests.sql.engine import Engine


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def running(program: Program, *arguments: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    with Path("api.log").open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=log, stderr=log, env=program.environment(PORT=str(port))
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: process.poll() is not None or answers(f"{url}/health"), 20, lambda: read("api.log"))
        yield process
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def read(name: str) -> str:
    return Path(name).read_text()


def test_alone_it_serves_says_how_and_ends_cleanly(dsn: str, engine: Engine) -> None:
    port = free_port()
    with running(Program(DATABASE_URL=dsn), "api", port=port) as process:
        assert httpx.post(f"http://127.0.0.1:{port}/api/jobs/work", json={"n": 1}).status_code == 201
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    assert f"at http://127.0.0.1:{port}" in read("api.log")
    assert "no token is set" in read("api.log")
    assert engine.count("queue") == 1


def test_alone_it_tells_its_process_manager_how_it_is(dsn: str) -> None:
    """systemd's Type=notify and watchdog, sd_notify(3), and PM2's wait_ready."""
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, Path("api.log").open("wb") as log:
        told.bind("notify.sock")
        told.settimeout(20)
        process = subprocess.Popen(
            [*COMMAND, "api"],
            stdout=log,
            stderr=log,
            pass_fds=[writer],
            env=Program(DATABASE_URL=dsn).environment(
                PORT="0",
                NOTIFY_SOCKET=str(Path("notify.sock").absolute()),
                WATCHDOG_USEC="60000000",
                NODE_CHANNEL_FD=str(writer),
            ),
        )
        os.close(writer)
        try:
            assert told.recv(500) == b"READY=1\nSTATUS=running", read("api.log")
            assert told.recv(500) == b"WATCHDOG=1"
            process.send_signal(signal.SIGTERM)
            while (state := told.recv(500)) == b"WATCHDOG=1":
                pass
            assert state.startswith(b"STOPPING=1")
            assert process.wait(15) == 0
            assert os.read(reader, 100) == b'"ready"\n'
        finally:
            process.kill()
            process.wait()
            os.close(reader)


def test_a_stop_right_after_its_first_line_is_not_lost(dsn: str) -> None:
    """The server takes signals a moment after it has said where it is."""
    with Path("api.log").open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, "api"], stdout=log, stderr=log, env=Program(DATABASE_URL=dsn).environment(PORT="0")
        )
    try:
        wait_until(lambda: "API and dashboard at" in read("api.log"), 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()


def test_beside_a_worker_it_is_ready_with_its_loops_and_ends_with_them(dsn: str, engine: Engine) -> None:
    port = free_port()
    program = Program(DATABASE_URL=dsn, QUEUE_WORKER_API_TOKEN=TOKEN)
    url = f"http://127.0.0.1:{port}"
    with running(program, "start", "-q", "email", "--with-api", port=port) as process:
        wait_until(lambda: answers(f"{url}/ready"), 20, lambda: read("api.log"))
        workers = httpx.get(f"{url}/api/workers", headers={"Authorization": f"Bearer {TOKEN}"}).json()["data"]
        assert [one["queues"] for one in workers] in ([["email"]], [])
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert TOKEN not in read("api.log")
    assert engine.count("queue") == 0


@pytest.mark.parametrize("command", [("api",), ("start", "--with-api")])
def test_an_open_door_is_refused(dsn: str, command: tuple[str, ...]) -> None:
    program = Program(DATABASE_URL=dsn)
    done = program(*command, "--host", "0.0.0.0")
    assert done.code == 78
    assert "QUEUE_WORKER_API_TOKEN" in done.line
    done = program("api", QUEUE_WORKER_API_TOKEN="short")
    assert done.code == 78
    assert "QUEUE_WORKER_API_TOKEN must have at least 16 characters" in done.line
    assert "'short'" not in done.err


def test_a_port_that_is_taken_is_one_line(dsn: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = Program(DATABASE_URL=dsn)("api", "--port", str(port))
    assert done.code == 78
    assert f"port {port}" in done.err
    assert "PORT" in done.err


def test_without_a_database_it_says_which_setting_is_missing() -> None:
    done = Program()("api")
    assert done.code == 78
    assert "DATABASE_URL" in done.line


def test_a_database_that_dies_is_told_and_its_return_is_seen(tmp_path_factory: pytest.TempPathFactory) -> None:
    own = OwnServer(tmp_path_factory.mktemp("own") / "pg")
    try:
        with own.connect() as connection:
            Engine(connection).create()
        with served(own.url) as client:
            assert client.get("/ready").json() == {"status": "ready"}
            assert client.get("/api/queues").status_code == 200
            own.crash(signal.SIGKILL)
            wait_until(lambda: client.get("/ready").status_code == 503, 20)
            assert client.get("/ready").json() == {"status": "unavailable"}
            assert client.get("/health").json() == {"status": "ok"}
            answer = client.post("/api/jobs/work", json={})
            assert answer.status_code == 503
            assert answer.json()["error"] == "the database cannot be reached"
            own.start()
            wait_until(lambda: client.get("/ready").status_code == 200, 30)
            assert client.post("/api/jobs/work", json={}).status_code == 201
    finally:
        own.close()


def test_it_says_that_it_lives_while_every_thread_waits_for_a_silent_database(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "LONGEST_CALL", 1.0)
    own = OwnServer(tmp_path_factory.mktemp("own") / "pg")
    try:
        with served(own.url) as client:
            assert client.get("/ready").status_code == 200
            own.proxy.blackhole()
            waiting = [threading.Thread(target=ask, args=(client.url,)) for _ in range(60)]
            for one in waiting:
                one.start()
            assert client.get("/health").json() == {"status": "ok"}
            own.proxy.heal()
            for one in waiting:
                one.join()
            wait_until(lambda: client.get("/ready").status_code == 200, 30)
    finally:
        own.close()


def ask(url: str) -> None:
    with contextlib.suppress(httpx.TransportError):
        httpx.get(f"{url}/api/queues", timeout=60)
