"""Files in a bucket of Supabase Storage, over its REST interface; needs storage3, which comes with supabase.

Import this module only where a bucket is configured: storage3 takes a while to load.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from storage3 import SyncStorageClient
from storage3.exceptions import StorageApiError

from queue_worker.errors import ConfigError
from queue_worker.storage import ORPHAN_SECONDS, SWEEP_EVERY, TEMPORARY, Digest, Stored, check_key, digest_of


class SupabaseStorage:
    """See `queue_worker.storage.Storage`.

    `url` is the project's (https://....supabase.co), `key` its service-role or secret key; `bucket` must exist.
    `timeout` in seconds bounds each single network operation. Besides OSError the methods raise ConfigError, naming
    the bucket or the key, when Storage refuses them.
    """

    def __init__(self, url: str, key: str, bucket: str, *, timeout: float = 30.0) -> None:
        # HTTP/1.1: storage3's default HTTP/2 client is not safe to share between threads.
        self._http = httpx.Client(http2=False, timeout=httpx.Timeout(timeout, connect=min(timeout, 5.0)))
        headers = {"apikey": key, "Authorization": f"Bearer {key}"}
        client = SyncStorageClient(f"{url.rstrip('/')}/storage/v1/", headers, http_client=self._http)
        self._files = client.from_(bucket)
        self._bucket = bucket
        self._swept = float("-inf")

    def put(self, key: str, source: Path, content_type: str) -> Stored:
        """See Storage."""
        check_key(key)
        if time.monotonic() - self._swept > SWEEP_EVERY:
            self._swept = time.monotonic()
            with contextlib.suppress(OSError):
                self.sweep()
        with source.open("rb") as reader:
            digest = digest_of(reader)
        temporary, moved = f"{TEMPORARY}/{uuid.uuid4().hex}", False
        try:
            self._upload(temporary, source, content_type, digest)
            moved = self._move(temporary, key)
            if not moved and not self._holds(key, digest):
                # Another file has the key. Storage switches to the new version only after all of it has arrived.
                self._upload(key, source, content_type, digest, replace=True)
        finally:
            if not moved:
                # Best effort: what stays behind is swept later, and an error under way matters more.
                with contextlib.suppress(OSError, ConfigError):
                    self._call("remove", [temporary])
        return Stored(key, digest.size, digest.sha256)

    def read(self, key: str) -> bytes:
        """See Storage."""
        return bytes(self._call("download", check_key(key)))

    def size(self, key: str) -> int:
        """See Storage."""
        size = self._call("info", check_key(key)).get("size")
        return len(self.read(key)) if size is None else int(size)

    def url(self, key: str, seconds: int) -> str | None:
        """Return a signed link: whoever has it can read the file for `seconds`."""
        return str(self._call("create_signed_url", check_key(key), seconds)["signedURL"])

    def delete(self, key: str) -> None:
        """See Storage."""
        self._call("remove", [check_key(key)])

    def sweep(self, older_than: float = ORPHAN_SECONDS) -> int:
        """Remove temporary files made more than `older_than` seconds ago, 1000 at most; returns how many."""
        now = time.time()
        orphans = [
            f"{TEMPORARY}/{item['name']}"
            for item in self._call("list", TEMPORARY, {"limit": 1000})
            if item.get("created_at") and now - datetime.fromisoformat(item["created_at"]).timestamp() > older_than
        ]
        if orphans:
            self._call("remove", orphans)
        return len(orphans)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _upload(self, key: str, source: Path, content_type: str, digest: Digest, *, replace: bool = False) -> None:
        self._call("upload", key, source, {"content-type": content_type, "upsert": "true" if replace else "false"})
        if not self._holds(key, digest):
            raise OSError(f"the upload of {key} did not arrive whole in bucket {self._bucket!r}")

    def _move(self, temporary: str, key: str) -> bool:
        """Publish; False where the key is taken."""
        try:
            self._call("move", temporary, key)
        except FileExistsError:
            return False
        return True

    def _holds(self, key: str, digest: Digest) -> bool:
        """Whether the bucket has exactly this content under `key`."""
        info = self._call("info", key)
        if info.get("size") not in (None, digest.size):
            return False
        # The tag is the content's MD5 on most back ends; where it is not, the content itself is compared.
        if str(info.get("etag") or "").strip('"') == digest.md5:
            return True
        return hashlib.sha256(self._call("download", key)).hexdigest() == digest.sha256

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._files, method)(*arguments)
        except StorageApiError as error:
            raise self._translate(error, method, arguments[0]) from None
        except httpx.HTTPError as error:
            raise OSError(
                f"Supabase Storage: {method} {arguments[0]} did not finish: {type(error).__name__}: {error}"
            ) from None

    def _translate(self, error: StorageApiError, method: str, what: Any) -> Exception:
        # Storage answers 400 for most errors and puts the status that it means into the body.
        status, text = str(error.status), f"{error.code}: {error.message}"
        if "bucket not found" in text.lower():
            return ConfigError(f"bucket {self._bucket!r} does not exist: create a private one in Supabase Storage")
        if status in ("401", "403") or error.code in ("InvalidJWT", "Unauthorized"):
            return ConfigError(f"Supabase Storage refuses the key ({text[:200]}): check SUPABASE_SERVICE_ROLE_KEY")
        if status == "404":
            return FileNotFoundError(f"{what} is not in bucket {self._bucket!r}")
        if status == "409":
            return FileExistsError(f"{method} {what}: the key is taken in bucket {self._bucket!r}")
        return OSError(f"Supabase Storage: {method} {what} was answered {status} {text[:300]}")
