"""Supabase Storage: over real HTTP, with connections that break, and a report that survives that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from queue_worker.errors import ConfigError, UsageError
from queue_worker.storage_supabase import SupabaseStorage
from tests.processors.storage_server import BUCKET, KEY, Bucket, serving

if TYPE_CHECKING:
    from tests.processors.report_context import Desk

pytest_plugins = ["report_fixtures"]


CONTENT = os.urandom(200_000)


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with serving() as bucket:
        yield bucket


@pytest.fixture
def storage(bucket: Bucket) -> Iterator[SupabaseStorage]:
    storage = SupabaseStorage(bucket.url, KEY, BUCKET, timeout=10)
    yield storage
    storage.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def test_a_file_is_published_and_read_back(bucket: Bucket, storage: SupabaseStorage, source: Path) -> None:
    stored = storage.put("2026/sales.csv", source, "text/csv; charset=utf-8")
    assert stored.key == "2026/sales.csv"
    assert stored.size == len(CONTENT)
    assert storage.read("2026/sales.csv") == CONTENT
    assert storage.size("2026/sales.csv") == len(CONTENT)
    assert list(bucket.objects) == ["2026/sales.csv"]
    assert bucket.types["2026/sales.csv"] == "text/csv; charset=utf-8"
    assert all(request.endswith("HTTP/1.1") for request in bucket.requests)
    storage.delete("2026/sales.csv")
    assert bucket.objects == {}
    for method in (storage.read, storage.size):
        with pytest.raises(FileNotFoundError):
            method("2026/sales.csv")


def test_a_signed_link_opens_without_the_key(storage: SupabaseStorage, source: Path) -> None:
    storage.put("a.bin", source, "application/octet-stream")
    link = storage.url("a.bin", 60)
    assert link is not None
    assert httpx.get(link).content == CONTENT
    assert KEY not in link


def test_an_upload_cut_at_half_publishes_nothing_and_the_retry_all(
    bucket: Bucket, storage: SupabaseStorage, source: Path
) -> None:
    bucket.fault = "cut"
    with pytest.raises(OSError, match="did not finish"):
        storage.put("a.bin", source, "application/octet-stream")
    assert bucket.objects == {}
    storage.put("a.bin", source, "application/octet-stream")
    assert bucket.objects == {"a.bin": CONTENT}


def test_an_upload_that_was_stored_by_half_is_noticed(bucket: Bucket, storage: SupabaseStorage, source: Path) -> None:
    bucket.fault = "truncate"
    with pytest.raises(OSError, match="did not arrive whole"):
        storage.put("a.bin", source, "application/octet-stream")
    assert bucket.objects == {}


def test_a_tag_that_is_no_checksum_makes_the_content_be_compared(
    bucket: Bucket, storage: SupabaseStorage, source: Path
) -> None:
    bucket.md5_tags = False
    storage.put("a.bin", source, "application/octet-stream")
    assert bucket.objects == {"a.bin": CONTENT}
    assert any(request.startswith(f"GET {BUCKET}/.tmp/") for request in bucket.requests)


def test_the_same_file_again_changes_nothing(bucket: Bucket, storage: SupabaseStorage, source: Path) -> None:
    first = storage.put("a.bin", source, "application/octet-stream")
    assert storage.put("a.bin", source, "application/octet-stream") == first
    assert bucket.objects == {"a.bin": CONTENT}
    assert not any(request.startswith(f"POST {BUCKET}/a.bin") for request in bucket.requests)


def test_another_file_replaces_the_old_one(bucket: Bucket, storage: SupabaseStorage, source: Path) -> None:
    storage.put("a.bin", source, "application/octet-stream")
    source.write_bytes(b"new")
    storage.put("a.bin", source, "application/octet-stream")
    assert bucket.objects == {"a.bin": b"new"}


def test_a_move_without_an_answer_is_made_good_by_the_retry(
    bucket: Bucket, storage: SupabaseStorage, source: Path
) -> None:
    bucket.fault = "mute"
    with pytest.raises(OSError, match="move"):
        storage.put("a.bin", source, "application/octet-stream")
    storage.put("a.bin", source, "application/octet-stream")
    assert bucket.objects == {"a.bin": CONTENT}


def test_orphans_of_a_crash_are_swept(bucket: Bucket, storage: SupabaseStorage, source: Path) -> None:
    bucket.objects = {".tmp/old": b"half", ".tmp/young": b"half"}
    bucket.created = {".tmp/young": "2999-01-01T00:00:00.000Z"}
    storage.put("a.bin", source, "application/octet-stream")
    assert sorted(bucket.objects) == [".tmp/young", "a.bin"]


def test_a_missing_bucket_is_named(bucket: Bucket, source: Path) -> None:
    with (
        closing(SupabaseStorage(bucket.url, KEY, "invoices")) as storage,
        pytest.raises(ConfigError, match=r"'invoices' does not exist"),
    ):
        storage.put("a.bin", source, "text/csv")


def test_a_wrong_key_is_named_and_not_shown(bucket: Bucket, source: Path) -> None:
    with closing(SupabaseStorage(bucket.url, "eyJ-wrong-secret", BUCKET)) as storage:
        with pytest.raises(ConfigError, match="SUPABASE_SERVICE_ROLE_KEY") as refused:
            storage.put("a.bin", source, "text/csv")
        assert "wrong-secret" not in f"{refused.value!r} {storage!r}"


def test_a_server_that_is_away_is_an_os_error(source: Path) -> None:
    with (
        closing(SupabaseStorage("http://127.0.0.1:9", KEY, BUCKET, timeout=2)) as storage,
        pytest.raises(OSError, match="Supabase Storage"),
    ):
        storage.put("a.bin", source, "text/csv")


@pytest.mark.parametrize("key", ["../a", "/a", "a//b", ".tmp/a", "a b", "a%2e"])
def test_a_hostile_key_never_reaches_the_server(
    bucket: Bucket, storage: SupabaseStorage, source: Path, key: str
) -> None:
    for call in (
        lambda: storage.put(key, source, "text/csv"),
        lambda: storage.read(key),
        lambda: storage.size(key),
        lambda: storage.url(key, 60),
        lambda: storage.delete(key),
    ):
        with pytest.raises(UsageError):
            call()
    assert bucket.requests == []


def test_a_report_whose_upload_is_cut_is_published_and_mailed_by_the_retry(
    reports_desk: Desk, bucket: Bucket, storage: SupabaseStorage
) -> None:
    reports_desk.function("name text, n int", "select 'Иванов', g from generate_series(1, 5000) g")
    bucket.fault = "cut"
    error = reports_desk.make(storage, "csv", email={"to": "a@example.com"})
    assert isinstance(error, OSError)
    assert bucket.objects == {}
    assert reports_desk.mails() == []
    assert reports_desk.make(storage, "csv", email={"to": "a@example.com"}) is None
    assert list(bucket.objects) == ["out/sales.csv"]
    assert bucket.objects["out/sales.csv"].decode("utf-8-sig").count("\r\n") == 5001
    assert len(reports_desk.mails()) == 1
