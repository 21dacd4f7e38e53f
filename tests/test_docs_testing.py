"""The files that docs/testing.md shows are written down and run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = dict(re.findall(r"```python (\S+)\n(.*?)```", (ROOT / "docs" / "testing.md").read_text(), re.S))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def pytest_in(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        text=True,
        capture_output=True,
        timeout=110,
    )


def test_the_files_of_the_page_pass_whatever_the_environment_says(project: Path) -> None:
    # A developer's own settings and `.env` do not reach the worker of a test.
    (project / ".env").write_text("DATABASE_URL=postgresql://nowhere.invalid/x\n")
    done = pytest_in(
        project, DATABASE_URL="postgresql://nowhere.invalid/x", DB_HOST="nowhere.invalid", QUEUE_WORKER_EMBEDDED="1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout
    assert not list(project.glob("**/postmaster.pid"))


def test_each_test_of_the_page_needs_its_handler(project: Path) -> None:
    jobs = project / "jobs.py"
    jobs.write_text(jobs.read_text().replace("user_id < 0", "user_id < -5").replace("== 13", "== 14"))
    done = pytest_in(project)
    assert "3 failed, 3 passed" in done.stdout, done.stdout
