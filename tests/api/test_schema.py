"""What the OpenAPI document says is what the server does: schemathesis asks every route."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.served import TOKEN, served
from tests.sql.engine import Engine

_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


@pytest.mark.full
def test_no_route_fails_or_answers_what_is_not_documented(dsn: str, engine: Engine, tmp_path: Path) -> None:
    engine.fill(3)
    engine.rows("select queue_worker.create_queue('email')")
    with served(dsn, token=TOKEN) as client:
        document = tmp_path / "openapi.json"
        document.write_text(client.get("/api/openapi.json").text)
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")),
                "run",
                str(document),
                f"--url={client.url}",
                f"--header=Authorization: Bearer {TOKEN}",
                f"--checks={','.join(_CHECKS)}",
                "--max-examples=5",
                "--seed=1",
                "--phases=examples,coverage,fuzzing",
                "--no-color",
            ],
            capture_output=True,
            text=True,
            timeout=110,
        )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
