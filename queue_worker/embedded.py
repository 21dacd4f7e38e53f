"""An embedded PostgreSQL per project directory, shared by all processes that use it and gone with the last of them.

    with embedded.ensure(Path(".queue-worker")) as server:
        psycopg.connect(server.url)

Every user holds a shared lock, so nothing has to be tidied up after a crash or kill -9. The server is owned by a
detached process of its own, see `queue_worker.embedded_supervisor`, which also explains the lock files.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self
from urllib.parse import quote

from queue_worker import embedded_supervisor as supervisor
from queue_worker.embedded_orphans import drop_stale_pid_file, pause, take_over
from queue_worker.embedded_places import (
    DEFAULT_VERSION,
    Places,
    bindable,
    choose_port,
    find_binaries,
    find_places,
    make_socket_dir,
    socket_dir,
)
from queue_worker.embedded_supervisor import Job, open_lock, postmaster, try_lock
from queue_worker.errors import ConfigError, QueueWorkerError

DEFAULT_ROOT = Path(".queue-worker")
_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
_LOG_LIMIT = 10_000_000  # bytes; a longer postgres.log is put aside at the next start


@dataclass(frozen=True)
class _Running:
    """What the supervisor wrote into server.json."""

    pid: int
    supervisor: int
    port: int
    socket_dir: str


class EmbeddedServer:
    """One user's share of a running server; close() or the end of the process gives it up.

    `root`, `bin_dir`, `data_dir`: absolute paths. `pid`: process id of the postmaster. `port`: TCP port on 127.0.0.1.
    `url`: for our own processes, through the private socket, as superuser postgres, without a password.
    After a restart of the server take the object that the next ensure() returns: the port may have changed.
    """

    def __init__(self, places: Places, bin_dir: Path, running: _Running, share: int) -> None:
        self.root = places.root
        self.data_dir = places.data_dir
        self.bin_dir = bin_dir
        self.pid = running.pid
        self.port = running.port
        self.url = f"postgresql://postgres@/postgres?host={quote(running.socket_dir, safe='')}&port={running.port}"
        self._close = weakref.finalize(self, os.close, share)

    @property
    def tcp_url(self) -> str:
        """URL with the password, for people and GUI tools on this machine. Raises ConfigError when it got lost."""
        try:
            password = (self.data_dir.parent / "password").read_text()
        except OSError as error:
            raise ConfigError(f"the password of the embedded Postgres cannot be read: {error}") from error
        return f"postgresql://postgres:{quote(password, safe='')}@127.0.0.1:{self.port}/postgres"

    def close(self) -> None:
        """Give up our share; the server stops when no other user is left. May be called again."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"EmbeddedServer(root={str(self.root)!r}, pid={self.pid}, port={self.port})"


def ensure(
    root: Path = DEFAULT_ROOT,
    *,
    settings: Mapping[str, str] = _NO_SETTINGS,
    version: int | None = None,
    timeout: float = 60.0,
) -> EmbeddedServer:
    """Make sure that a server runs for `root`, and register this process as a user of it.

    `settings` are PostgreSQL settings, used when this call starts the server and without effect on a running one.
    `version` is 18 or 16; None takes that of existing data, else 18. `timeout` in seconds covers waiting for other
    processes, initdb and crash recovery; the call blocks for that long at most, 1 s for a first start as a rule.
    Call it again after a lost connection: it restarts a server that died. Every returned object holds its own share.

    Raises ConfigError: wrong platform, package or version missing, bad setting, foreign directory, start failed or
    not ready in time (the message quotes the log).
    """
    if sys.platform == "win32":
        raise ConfigError("embedded Postgres needs Linux or macOS; set a database URL instead")
    for name in settings:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name):
            raise ConfigError(f"not the name of a PostgreSQL setting: {name!r}")
    deadline = time.monotonic() + timeout
    try:
        places = find_places(root, make=True)
        bin_dir = find_binaries(places, _version(places.data_dir, version))
        share = open_lock(places.root / "users.lock")
        try:
            running = _running(places, bin_dir, share, dict(settings), deadline)
            return EmbeddedServer(places, bin_dir, running, share)
        except BaseException:
            os.close(share)
            raise
    except OSError as error:
        raise ConfigError(f"embedded Postgres in {root}: {error}") from error


def stop(root: Path = DEFAULT_ROOT, *, delete: bool = False, timeout: float = 30.0) -> None:
    """Stop the server of `root` even if it has users, and return when all its processes are gone.

    `delete` removes the data too, wherever they are. A user that calls ensure() afterwards starts a new server.
    Nothing happens when there is none. Raises QueueWorkerError when it takes longer than `timeout` seconds.
    """
    if not root.is_dir():
        return
    places = find_places(root, make=False)
    deadline = time.monotonic() + timeout
    request = places.root / "stop.request"
    start_lock = open_lock(places.root / "start.lock")
    try:
        while not try_lock(start_lock):
            request.touch()
            pause(deadline, f"the embedded Postgres in {root} did not stop in {timeout:g} s")
        request.unlink(missing_ok=True)
        if places.data_dir.parent.is_dir():
            os.close(take_over(places.data_dir, deadline))
        with contextlib.suppress(OSError, ConfigError):
            socket_dir(places).rmdir()  # its supervisor did not when it was killed
        if delete:
            for name in ("password", "port"):
                (places.data_dir.parent / name).unlink(missing_ok=True)
            if places.data_dir.exists():
                shutil.rmtree(places.data_dir)
            if places.data_dir.parent != places.root:
                shutil.rmtree(places.data_dir.parent, ignore_errors=True)
    finally:
        os.close(start_lock)


def psql_command(server: EmbeddedServer) -> str:
    """The shell command that opens psql on this server, for the same user of the operating system (or root)."""
    return shlex.join([str(server.bin_dir / "psql"), server.url])


def _version(data_dir: Path, wanted: int | None) -> int:
    try:
        made_by = int((data_dir / "PG_VERSION").read_text())
    except (OSError, ValueError):
        return DEFAULT_VERSION if wanted is None else wanted
    if wanted not in (None, made_by):
        raise ConfigError(f"{data_dir} was made by PostgreSQL {made_by}, not {wanted}: use {made_by} or another root")
    return made_by


def _running(places: Places, bin_dir: Path, share: int, settings: dict[str, str], deadline: float) -> _Running:
    """Take our share and wait for a server that answers, starting one if there is none."""
    tried: list[int] = []  # ports
    log_end, start_lock = 0, open_lock(places.root / "start.lock")
    try:
        while not try_lock(share, shared=True):  # a supervisor keeps it until its server has ended
            pause(deadline, "the previous server did not stop in time")
        while True:
            # The lock first: a server whose supervisor is dead may still answer, but is about to stop.
            if try_lock(start_lock):
                if len(tried) == 5 or (tried and bindable(tried[-1])):  # else another program took the port
                    raise ConfigError(_failure(places.root, log_end))
                (places.root / "server.json").unlink(missing_ok=True)
                log_end, port = _spawn(places, bin_dir, settings, start_lock, deadline)
                tried.append(port)
                handed_over, start_lock = start_lock, open_lock(places.root / "start.lock")
                os.close(handed_over)  # our copy only: the supervisor keeps the lock through its own
            elif running := _answering(places):
                return running
            pause(deadline, f"the server was not ready in time; see {places.root / 'postgres.log'}")
    except QueueWorkerError as error:
        raise ConfigError(f"embedded Postgres in {places.root}: {error}") from error
    finally:
        os.close(start_lock)


def _answering(places: Places) -> _Running | None:
    """The running server, or None unless it is ready at this moment: server.json may be that of a dead one."""
    try:
        running = _Running(**json.loads((places.root / "server.json").read_text()))
        if postmaster(places.data_dir) != (running.pid, "ready"):
            return None
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            probe.connect(f"{running.socket_dir}/.s.PGSQL.{running.port}")
            probe.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")  # SSLRequest; the answer proves more than the connection
            return running if probe.recv(1) else None
    except (OSError, ValueError, TypeError):
        return None


def _spawn(
    places: Places, bin_dir: Path, settings: dict[str, str], start_lock: int, deadline: float
) -> tuple[int, int]:
    """Start a supervisor and hand it both locks; return the size of the log before, and the port."""
    server_lock = take_over(places.data_dir, deadline)
    log = places.root / "postgres.log"
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        log.replace(log.with_suffix(".log.1"))
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        drop_stale_pid_file(places.data_dir)
        (places.root / "stop.request").unlink(missing_ok=True)
        job = Job(
            root=str(places.root),
            data_dir=str(places.data_dir),
            bin_dir=str(bin_dir),
            socket_dir=str(make_socket_dir(places)),
            port=choose_port(places),
            settings=settings,
            uid=places.uid,
            gid=places.gid,
            start_lock=start_lock,
            server_lock=server_lock,
        )
        size = os.fstat(output).st_size
        subprocess.run(
            [sys.executable, "-I", supervisor.__file__, json.dumps(asdict(job))],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            start_new_session=True,  # Ctrl-C in our terminal is not meant for it
            pass_fds=(start_lock, server_lock),
            check=False,
        )
        return size, job.port
    finally:
        os.close(output)
        os.close(server_lock)


def _failure(root: Path, log_end: int) -> str:
    """Why the server did not start: the telling line that the log got since it was `log_end` bytes long."""
    with (root / "postgres.log").open("rb") as log:
        log.seek(log_end)
        lines = log.read().decode(errors="replace").splitlines()
    for mark in ("FATAL:", "PANIC:", "initdb: error:", "queue_worker:", ""):
        for line in reversed(lines):
            if mark in line:
                return f"the server did not start: {line.partition(mark)[2].strip()} (see {root / 'postgres.log'})"
    return f"the server did not start (see {root / 'postgres.log'})"
