"""The storage in a folder: whole files or none, safe keys, no links, no litter."""

from __future__ import annotations

import hashlib
import os
import resource
import threading
from pathlib import Path
from typing import IO, Any

import pytest

from queue_worker.errors import UsageError
from queue_worker.storage import LocalStorage, check_key

HOSTILE = [
    "",
    "/etc/passwd",
    "../outside",
    "a/../../outside",
    "a/..",
    "a/./b",
    "a//b",
    "a/",
    ".tmp/x",
    ".hidden",
    "a/.../b",
    "a\\b",
    "C:/x",
    "a b",
    "a\n",
    "a\x00b",
    "file://x",
    "отчёт.csv",
    "a%2e%2e",
    "-rf",
    "~root/x",
    "x" * 513,
]


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "files")


def file(folder: Path, content: bytes) -> Path:
    path = folder / "source"
    path.write_bytes(content)
    return path


def published(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_is_published_with_its_size_and_checksum(storage: LocalStorage, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    stored = storage.put("2026/01/sales.csv", file(tmp_path, content), "text/csv")
    assert stored == ("2026/01/sales.csv", 3_000_000, hashlib.sha256(content).hexdigest())
    assert storage.read("2026/01/sales.csv") == content
    assert storage.size("2026/01/sales.csv") == 3_000_000
    assert storage.url("2026/01/sales.csv", 60) is None
    assert published(tmp_path / "files") == ["2026/01/sales.csv"]


def test_a_second_put_replaces_the_file(storage: LocalStorage, tmp_path: Path) -> None:
    storage.put("a.csv", file(tmp_path, b"old"), "text/csv")
    storage.put("a.csv", file(tmp_path, b"new one"), "text/csv")
    assert storage.read("a.csv") == b"new one"


def test_readers_never_see_half_a_file(storage: LocalStorage, tmp_path: Path) -> None:
    versions = [bytes([65 + number]) * 500_000 for number in range(2)]
    storage.put("a.csv", file(tmp_path, versions[0]), "text/csv")
    seen: set[bytes] = set()
    end = threading.Event()

    def look() -> None:
        while not end.is_set():
            seen.add(storage.read("a.csv"))

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(30):
        storage.put("a.csv", file(tmp_path, versions[number % 2]), "text/csv")
    end.set()
    reader.join()
    assert seen <= set(versions)


@pytest.mark.parametrize("key", HOSTILE)
def test_a_hostile_key_is_refused_by_every_method(storage: LocalStorage, tmp_path: Path, key: str) -> None:
    source = file(tmp_path, b"x")
    calls: list[Any] = [
        lambda: storage.put(key, source, "text/csv"),
        lambda: storage.read(key),
        lambda: storage.size(key),
        lambda: storage.url(key, 60),
        lambda: storage.delete(key),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="storage key"):
            call()
    assert published(tmp_path) == ["source"]


@pytest.mark.parametrize("key", ["a", "A.csv", "a/b/c-d_e.f", "9/x..y", "x" * 512])
def test_an_ordinary_key_is_accepted(key: str) -> None:
    assert check_key(key) == key


def test_a_link_to_a_folder_outside_is_refused(storage: LocalStorage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "link").symlink_to(outside)
    for call in (
        lambda: storage.put("link/sub/new", file(tmp_path, b"x"), "text/csv"),
        lambda: storage.read("link/secret"),
        lambda: storage.size("link/secret"),
        lambda: storage.delete("link/secret"),
    ):
        with pytest.raises(UsageError, match="symbolic link"):
            call()
    assert published(outside) == ["secret"]


def test_a_link_in_the_place_of_a_file_is_refused(storage: LocalStorage, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.csv").symlink_to(secret)
    with pytest.raises(UsageError, match="symbolic link"):
        storage.put("a.csv", file(tmp_path, b"x"), "text/csv")
    with pytest.raises(UsageError, match="symbolic link"):
        storage.read("a.csv")
    assert secret.read_bytes() == b"secret"


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "files").symlink_to(tmp_path / "disk")
    LocalStorage(tmp_path / "files").put("a.csv", file(tmp_path, b"x"), "text/csv")
    assert (tmp_path / "disk" / "a.csv").read_bytes() == b"x"


class Breaking(type(Path())):  # type: ignore[misc]
    """A file whose disk fails after half of it."""

    def open(self, *args: Any, **kwargs: Any) -> IO[Any]:
        file: Any = super().open(*args, **kwargs)
        original = file.read
        file_size = self.stat().st_size

        class Reader:
            def __enter__(self) -> Reader:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def read(self, size: int) -> bytes:
                if file.tell() >= file_size // 2:
                    raise OSError(5, "Input/output error")
                return bytes(original(min(size, file_size // 2)))

        return Reader()  # type: ignore[return-value]


def test_a_source_that_breaks_half_way_publishes_nothing_and_the_retry_all(
    storage: LocalStorage, tmp_path: Path
) -> None:
    source = file(tmp_path, b"x" * 200_000)
    with pytest.raises(OSError, match="Input/output"):
        storage.put("a.csv", Breaking(source), "text/csv")
    assert published(tmp_path / "files") == []
    storage.put("a.csv", source, "text/csv")
    assert storage.size("a.csv") == 200_000


def test_a_full_disk_publishes_nothing_and_keeps_what_was_there(storage: LocalStorage, tmp_path: Path) -> None:
    storage.put("a.csv", file(tmp_path, b"old"), "text/csv")
    source = file(tmp_path, b"x" * 200_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            storage.put("a.csv", source, "text/csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert published(tmp_path / "files") == ["a.csv"]
    assert storage.read("a.csv") == b"old"


def test_orphans_of_a_crash_are_swept_and_young_files_kept(storage: LocalStorage, tmp_path: Path) -> None:
    folder = tmp_path / "files" / ".tmp"
    folder.mkdir(parents=True)
    for name, age in (("old", 90_000), ("young", 60)):
        path = folder / name
        path.write_bytes(b"half")
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    storage.put("a.csv", file(tmp_path, b"x"), "text/csv")
    assert published(tmp_path / "files") == [".tmp/young", "a.csv"]
    assert storage.sweep(older_than=30) == 1
    assert published(tmp_path / "files") == ["a.csv"]


def test_a_missing_file_is_said_so_and_its_removal_is_no_error(storage: LocalStorage) -> None:
    storage.delete("a.csv")
    for call in (storage.read, storage.size):
        with pytest.raises(FileNotFoundError):
            call("a.csv")
