"""A JSON value in a person's own editor."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from queue_worker.cli.values import json_text, parse_json
from queue_worker.errors import UsageError


def edited(value: Any) -> Any:
    """Return what a person makes of `value` in $VISUAL or $EDITOR (else vi).

    Raises UsageError where the editor cannot be started or fails, and for what is no JSON any more.
    """
    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    # A folder that others may not read: what a message holds may be confidential.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "payload.json"
        path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        try:
            code = subprocess.run([*command, str(path)], check=False).returncode
        except OSError as error:
            raise UsageError(f"the editor {command[0]!r} cannot be started: {error.strerror}; set EDITOR") from None
        if code != 0:
            raise UsageError(f"the editor {command[0]!r} ended with code {code}: nothing changed")
        text, _ = json_text(f"@{path}")
        return parse_json(text, "the edited payload")
