"""Where finished files are put: a folder here, or a bucket of Supabase (see storage_supabase).

A file is first written whole under a temporary name, checked, and only then published under its key in one step, so
that nobody ever reads half a file. The same key may be put again: the new file replaces the old one in one step too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
import uuid
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from queue_worker.errors import UsageError

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,511}")
TEMPORARY = ".tmp"
"""Where unfinished files are. A key cannot begin with a dot, so they and published files never meet."""
ORPHAN_SECONDS = 86_400.0
"""Age after which a temporary file is taken for the remains of a crash, in seconds."""
SWEEP_EVERY = 3600.0
"""Least time between two looks for orphans, in seconds."""
_CHUNK = 1 << 20


class Stored(NamedTuple):
    """A published file: its key, size in bytes, and SHA-256 in hexadecimal."""

    key: str
    size: int
    sha256: str


class Storage(Protocol):
    """A place for files. All methods raise UsageError for a bad key and OSError when the place does not answer."""

    def put(self, key: str, source: Path, content_type: str) -> Stored:
        """Publish the file `source` under `key`, whole or not at all; what was there before is replaced."""

    def read(self, key: str) -> bytes:
        """Return the content of a file. Raises FileNotFoundError."""

    def size(self, key: str) -> int:
        """Return the size of a file in bytes. Raises FileNotFoundError."""

    def url(self, key: str, seconds: int) -> str | None:
        """Return a link that works without a login for `seconds`; None where the place has no links."""

    def delete(self, key: str) -> None:
        """Remove a file; one that is not there is no error."""


def check_key(key: str) -> str:
    """Return `key` if it is safe as a path: A-Z a-z 0-9 . _ / - only, no empty, `.` or `..` part, at most 512.

    Raises UsageError.
    """
    if not _KEY.fullmatch(key) or any(part.strip(".") == "" for part in key.split("/")):
        raise UsageError(
            f"storage key {key[:80]!r} is not allowed: at most 512 of A-Z a-z 0-9 . _ / -, beginning with a letter or a"
            " digit, without an empty part or one of dots only"
        )
    return key


class Digest(NamedTuple):
    """Size in bytes and checksums in hexadecimal of some content."""

    size: int
    sha256: str
    md5: str


def digest_of(reader: IO[bytes], writer: IO[bytes] | None = None) -> Digest:
    """Read `reader` to its end, and copy it to `writer` on the way."""
    size, sha256, md5 = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    while chunk := reader.read(_CHUNK):
        size += len(chunk)
        sha256.update(chunk)
        md5.update(chunk)
        if writer is not None:
            writer.write(chunk)
    return Digest(size, sha256.hexdigest(), md5.hexdigest())


class LocalStorage:
    """Files in a folder of this machine. Symbolic links under `root` are refused; `root` itself may be one."""

    def __init__(self, root: Path) -> None:
        self._root = Path(root)
        self._swept = float("-inf")

    def put(self, key: str, source: Path, content_type: str) -> Stored:
        """See Storage; `content_type` is not kept."""
        check_key(key)
        folder = self._root / TEMPORARY
        folder.mkdir(parents=True, exist_ok=True)
        if time.monotonic() - self._swept > SWEEP_EVERY:
            self._swept = time.monotonic()
            self.sweep()
        temporary = folder / uuid.uuid4().hex
        try:
            digest = _copy(source, temporary)
            target = self._path(key, make=True)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return Stored(key, digest.size, digest.sha256)

    def read(self, key: str) -> bytes:
        """See Storage."""
        # O_NOFOLLOW closes the gap between the check of the path and the opening.
        descriptor = os.open(self._path(key), os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:
            return file.read()

    def size(self, key: str) -> int:
        """See Storage."""
        return self._path(key).stat(follow_symlinks=False).st_size

    def url(self, key: str, seconds: int) -> str | None:
        """Return None: a folder has no links."""
        check_key(key)
        return None

    def delete(self, key: str) -> None:
        """See Storage."""
        self._path(key).unlink(missing_ok=True)

    def sweep(self, older_than: float = ORPHAN_SECONDS) -> int:
        """Remove temporary files last written more than `older_than` seconds ago; returns how many."""
        removed = 0
        for path in (self._root / TEMPORARY).glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat(follow_symlinks=False).st_mtime > older_than:
                    path.unlink()
                    removed += 1
        return removed

    def _path(self, key: str, *, make: bool = False) -> Path:
        *folders, name = check_key(key).split("/")
        path = self._root
        for part in folders:
            path = path / part
            # Checked before the next part is made: a link must not lead mkdir out of the root.
            _refuse_link(path, key)
            if make:
                path.mkdir(exist_ok=True)
        return _refuse_link(path / name, key)


def _refuse_link(path: Path, key: str) -> Path:
    if path.is_symlink():
        raise UsageError(f"storage key {key!r} leads through a symbolic link, which is refused")
    return path


def _copy(source: Path, temporary: Path) -> Digest:
    """Copy to a new file that is on the disk when this returns; raises OSError if what arrived is not the source."""
    with source.open("rb") as reader, temporary.open("xb") as writer:
        digest = digest_of(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())
    with temporary.open("rb") as copy:
        if digest_of(copy) != digest or digest.size != source.stat().st_size:
            raise OSError(f"{source.name} did not arrive whole in the storage folder")
    return digest


def _sync_folder(folder: Path) -> None:
    # Without this a power cut may undo the rename. Windows cannot open a folder, and needs no such call.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
