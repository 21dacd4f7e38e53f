"""The detached process that owns one embedded PostgreSQL; `queue_worker.embedded` starts it.

It is run as a script with `python -I`, so it needs the standard library only and sees no module of the caller's
directory. Three lock files (flock, so the kernel frees them even after kill -9) say who is alive:

users.lock   shared by every user; the supervisor takes it exclusively once nobody is left, and then stops the server
start.lock   exclusive from the decision to start until the supervisor ends: there is one supervisor at a time
server.lock  exclusive, inherited by postgres and its children: free means that no process of the old server is left
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import locale
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if sys.platform != "win32":  # the module must import on Windows, so that embedded.ensure() can refuse politely
    import fcntl

POLL = 0.3  # seconds between two looks for users
PR_SET_PDEATHSIG = 1


class StartFailure(Exception):
    """The server cannot be started; the text goes to the log and from there to the user."""


@dataclass(frozen=True)
class Job:
    """What a supervisor needs to know. `uid`/`gid`: whom postgres runs as, None for the caller's own user.

    `start_lock` and `server_lock` are descriptors, already locked, that the supervisor takes over.
    """

    root: str
    data_dir: str
    bin_dir: str
    socket_dir: str
    port: int
    settings: dict[str, str]
    uid: int | None
    gid: int | None
    start_lock: int
    server_lock: int


def open_lock(path: Path) -> int:
    """Open (and make) a lock file, return its descriptor, which children do not inherit."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Take the lock of `fd` without waiting; False when somebody else holds it."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def postmaster(data_dir: Path) -> tuple[int, str]:
    """Pid and status ("starting", "ready", "stopping", ...) from postmaster.pid; (0, "") when there is none."""
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
        return int(lines[0]), lines[7].strip() if len(lines) > 7 else ""
    except (OSError, ValueError, IndexError):
        return 0, ""


def _dies_with_us(what: signal.Signals) -> Callable[[], None] | None:
    """A preexec_fn that lets the kernel send `what` to the child when this process dies; None where it cannot."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def before_exec() -> None:  # runs after setuid(), which would clear the signal again
        prctl(PR_SET_PDEATHSIG, int(what))
        if os.getppid() != parent:
            os._exit(127)

    return before_exec


def _popen(job: Job, *command: str, dying: signal.Signals, keep: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(Path(job.bin_dir) / command[0]), *command[1:]],
        stdin=subprocess.DEVNULL,
        cwd="/",
        # A fresh environment: PG* would steer postgres, and the caller's secrets are no business of user nobody.
        env={"PATH": os.defpath, "LC_ALL": "C"} | {k: v for k, v in os.environ.items() if k == "TZ"},
        pass_fds=keep,
        user=job.uid,
        group=job.gid,
        extra_groups=None if job.uid is None else [],
        umask=0o077,
        preexec_fn=_dies_with_us(dying),  # noqa: PLW1509 - this process has one thread
    )


def _hand_over(job: Job, path: Path) -> None:
    if job.uid is not None and job.gid is not None:
        os.chown(path, job.uid, job.gid, follow_symlinks=False)


def _locale_options(bin_dir: str) -> list[str]:
    try:
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
    except locale.Error:
        builtin = Path(bin_dir).parent.name == "pginstall18"  # 16 has no builtin provider
        return ["--locale=C", *(["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if builtin else [])]
    return ["--locale=C.UTF-8"]


def _initdb(job: Job) -> None:
    """Make the data directory, complete or not at all: the rename at the end is what makes it count."""
    data_dir = Path(job.data_dir)
    for left_over in data_dir.parent.glob("pg.init-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    work = Path(tempfile.mkdtemp(dir=data_dir.parent, prefix="pg.init-"))
    password = data_dir.parent / "password"
    password.unlink(missing_ok=True)
    fd = os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, secrets.token_urlsafe(24).encode())
    os.close(fd)
    _hand_over(job, work)
    _hand_over(job, password)
    options = ["-U", "postgres", "-E", "UTF8", "--no-sync", "--auth-local=trust", "--auth-host=scram-sha-256"]
    command = ["initdb", "-D", str(work), *options, f"--pwfile={password}", *_locale_options(job.bin_dir)]
    code = _popen(job, *command, dying=signal.SIGKILL).wait()
    os.chown(password, os.geteuid(), os.getegid())
    if code:
        shutil.rmtree(work, ignore_errors=True)
        raise StartFailure(f"initdb ended with code {code}")
    work.rename(data_dir)


def _remove_socket(job: Job) -> None:
    """Remove the socket and its lock file, which may carry the pid of an unrelated process by now."""
    for name in (f".s.PGSQL.{job.port}", f".s.PGSQL.{job.port}.lock"):
        (Path(job.socket_dir) / name).unlink(missing_ok=True)


def _start(job: Job) -> subprocess.Popen[bytes]:
    _remove_socket(job)
    fixed = {  # these win, so that the caller's settings cannot open the server to the network
        "port": str(job.port),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": job.socket_dir,
        "logging_collector": "off",
    }
    wished = {name.lower(): value for name, value in job.settings.items()}  # as postgres compares them
    settings = {"max_connections": "200", "shared_buffers": "64MB"} | wished | fixed
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    return _popen(job, "postgres", "-D", job.data_dir, *options, dying=signal.SIGINT, keep=(job.server_lock,))


def _announce(job: Job, pid: int) -> None:
    state = {"pid": pid, "supervisor": os.getpid(), "port": job.port, "socket_dir": job.socket_dir}
    draft = Path(job.root) / "server.json.new"
    draft.write_text(json.dumps(state))
    draft.replace(Path(job.root) / "server.json")  # readers see all of it or nothing


def _withdraw(job: Job) -> None:
    """Remove what _announce() wrote, but not what the server of a root that was deleted and made anew wrote."""
    state = Path(job.root) / "server.json"
    with contextlib.suppress(OSError, ValueError):
        if json.loads(state.read_text()).get("supervisor") == os.getpid():
            state.unlink()


def _wakeups() -> socket.socket:
    """A socket that becomes readable with every signal.

    SIGTERM and its like are no order to stop: systemd sends them to the whole group, and a worker that still drains
    needs its database. The server goes when its last user has gone.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.detach(), warn_on_full_buffer=False)
    for what in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(what, lambda *_: None)
    return ours


def _wanted(job: Job, users: int) -> bool:
    """Whether anybody needs the server. When not, users.lock stays locked: newcomers wait until we have gone."""
    try:
        here, mine = os.stat(Path(job.root) / "users.lock"), os.fstat(users)
    except FileNotFoundError:
        return False
    if (here.st_dev, here.st_ino) != (mine.st_dev, mine.st_ino):  # the root was deleted and made anew
        return False
    return not (Path(job.root) / "stop.request").exists() and not try_lock(users)


def _watch(job: Job, server: subprocess.Popen[bytes], users: int, wake: socket.socket) -> bool:
    """Return when postgres ended or nobody needs it; True when it has been ready for use."""
    announced, look = False, time.monotonic()
    while server.poll() is None:
        if not announced and postmaster(Path(job.data_dir)) == (server.pid, "ready"):
            _announce(job, server.pid)
            announced = True
        if time.monotonic() >= look:
            if not _wanted(job, users):
                break
            look = time.monotonic() + POLL
        if select.select([wake], [], [], POLL if announced else 0.01)[0]:
            wake.recv(4096)
    return announced


def _end(server: subprocess.Popen[bytes]) -> None:
    for what, patience in ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, None)):
        server.send_signal(what)
        try:
            server.wait(patience)
            return
        except subprocess.TimeoutExpired:
            continue


def supervise(job: Job) -> None:
    """Run one server from start to end; raises StartFailure or OSError when it never became ready."""
    users = open_lock(Path(job.root) / "users.lock")
    if not (Path(job.data_dir) / "PG_VERSION").exists():
        _initdb(job)
    wake = _wakeups()
    server = _start(job)
    try:
        was_ready = _watch(job, server, users, wake)
        code = server.poll()
    finally:
        _end(server)
        _withdraw(job)
        _remove_socket(job)
        with contextlib.suppress(OSError):
            os.rmdir(job.socket_dir)
        signal.set_wakeup_fd(-1)
    if code is not None and not was_ready:
        raise StartFailure(f"postgres ended with code {code} while starting")


def main() -> None:
    """Detach, then run the job that the only argument holds as JSON."""
    job = Job(**json.loads(sys.argv[1]))
    if os.fork():  # the caller waits for this first process; the second one is nobody's child and leaves no zombie
        os._exit(0)
    os.set_inheritable(job.start_lock, False)  # postgres must not hold it: free means that the supervisor is gone
    os.set_inheritable(job.server_lock, False)  # initdb must not; _start() names it for postgres
    try:
        supervise(job)
    except (StartFailure, OSError) as error:
        print(f"queue_worker: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
