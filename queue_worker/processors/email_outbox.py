"""The outbox: mails as .eml files, for as long as there is no mail server."""

from __future__ import annotations

import hashlib
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path


def write_eml(folder: Path, data: bytes, key: str, first_at: int) -> Path:
    """Write a mail atomically and return its path.

    The name comes from `first_at` (when the mail was first tried, Unix time) and `key`, so that a rerun writes the same
    file again. Raises OSError.
    """
    when = datetime.fromtimestamp(first_at, UTC).strftime("%Y%m%dT%H%M%SZ")
    path = folder / f"{when}-{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}.eml"
    folder.mkdir(parents=True, exist_ok=True)
    # mkstemp makes the file readable for its owner only.
    handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
    temporary = Path(name)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
