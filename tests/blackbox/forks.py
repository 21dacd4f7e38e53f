"""Commands of the program by fork, from a process that has loaded it already: the tests run thousands of them.

Each is a process of its own, with its own arguments, environment, working directory and streams. Run as a module this
is that process: for each connection to its socket it reads {"argv": [...], "env": {...}, "cwd": "..."} and three open
files, runs the command, and answers {"pid": ...}, then {"code": ...}.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

_ROOT = Path(__file__).resolve().parents[2]
_LOADED = ("queue_worker.cli.program", "queue_worker.opening", "queue_worker.service", "queue_worker.migrate",
           "queue_worker.doctor", "queue_worker.transport.supabase", "postgrest", "httpx")  # fmt: skip

_place: str | None = None
pid: int | None = None
"""Of the process that runs commands, while it is there."""


@contextlib.contextmanager
def server() -> Iterator[None]:
    """Keep the process ready while the block runs."""
    global _place, pid  # noqa: PLW0603
    with tempfile.TemporaryDirectory(prefix="queue-worker-") as folder:
        place = f"{folder}/forks"
        process = subprocess.Popen([sys.executable, "-m", __name__, place], cwd=_ROOT, stdin=subprocess.PIPE)
        _place, pid = place, process.pid
        try:
            yield
        finally:
            _place = pid = None
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)


def run(
    arguments: Sequence[str], environment: dict[str, str], stdin: bytes, seconds: float
) -> subprocess.CompletedProcess[bytes]:
    """Run `queue-worker` with `arguments` in the working directory, to its end; raises TimeoutExpired."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(stdin)
        files[0].seek(0)
        connection = stack.enter_context(socket.socket(socket.AF_UNIX))
        _connect(connection)
        socket.send_fds(connection, [b"."], [file.fileno() for file in files])
        order = {"argv": list(arguments), "env": environment, "cwd": os.getcwd()}
        lines = stack.enter_context(connection.makefile("rw"))
        lines.write(json.dumps(order) + "\n")
        lines.flush()
        command = json.loads(lines.readline())["pid"]
        if not select.select([connection], [], [], seconds)[0]:
            os.kill(command, signal.SIGKILL)
            raise subprocess.TimeoutExpired(list(arguments), seconds)
        code = json.loads(lines.readline())["code"]
        said = []
        for file in files[1:]:
            file.seek(0)
            said.append(file.read())
    return subprocess.CompletedProcess(list(arguments), code, *said)


_CLIENT = """#!{python} -IS
import json, os, signal, socket, sys, time
words = sys.argv[1:]
if words[:1] == ["demo"] or "--processes" in words or "--reload" in words:
    os.execv({python!r}, [{python!r}, "-m", "queue_worker", *words])
with socket.socket(socket.AF_UNIX) as connection:
    end = time.monotonic() + 30
    while connection.connect_ex({place!r}) and time.monotonic() < end:
        time.sleep(0.05)
    socket.send_fds(connection, [b"."], [0, 1, 2])
    lines = connection.makefile("rw")
    lines.write(json.dumps({{"argv": words, "env": dict(os.environ), "cwd": os.getcwd()}}) + "\\n")
    lines.flush()
    command = json.loads(lines.readline())["pid"]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: os.kill(command, number))
    code = json.loads(lines.readline())["code"]
sys.exit(code if code >= 0 else 128 - code)
"""


def script(path: Path) -> None:
    """Write a program `queue-worker` for shells, whose commands are forked too; a signal to it reaches the command.

    Commands that start themselves again run as processes from the start.
    """
    assert _place is not None, "the process that runs commands is not there"
    path.write_text(_CLIENT.format(python=sys.executable, place=_place))
    path.chmod(0o755)


def _connect(connection: socket.socket) -> None:
    from tests.helpers import wait_until

    assert _place is not None, "the process that runs commands is not there"
    wait_until(lambda: connection.connect_ex(_place) == 0, 30, "the process that runs commands did not come up")


# ------------------------------------------------------------------------------------------------ the process


def _command(order: dict[str, Any], files: list[int]) -> NoReturn:
    code = 99
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        # As an interpreter makes them: those from before take a pipe for a file that can be wound back.
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(order["env"])
        os.chdir(order["cwd"])
        # What `python -m queue_worker` and PYTHONPATH put there.
        sys.path[:0] = [order["cwd"], *filter(None, order["env"].get("PYTHONPATH", "").split(os.pathsep))]
        sys.argv = ["queue-worker", *order["argv"]]
        from queue_worker.cli import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _serve(connection: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, *_ = socket.recv_fds(connection, 1, 3)
    lines = connection.makefile("rw")
    order = json.loads(lines.readline())
    command = os.fork()
    if not command:
        connection.close()
        _command(order, list(files))
    lines.write(json.dumps({"pid": command}) + "\n")
    lines.flush()
    _, status = os.waitpid(command, 0)
    lines.write(json.dumps({"code": os.waitstatus_to_exitcode(status)}) + "\n")
    lines.flush()


def main(place: str) -> None:
    for name in _LOADED:
        importlib.import_module(name)
    # Nobody waits for those that serve a connection.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen()
        while True:
            ready, _, _ = select.select([listener, 0], [], [])
            if 0 in ready:
                return
            connection, _ = listener.accept()
            if not os.fork():
                listener.close()
                try:
                    _serve(connection)
                finally:
                    os._exit(0)
            connection.close()


if __name__ == "__main__":
    main(sys.argv[1])
