"""docs/deployment.md: its commands run and print what it shows, and its tables say what the code does."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from queue_worker import supervisor
from queue_worker.config import Settings
from tests.blackbox import forks
from tests.blackbox.program import REPOSITORY, Program
from tests.blackbox.test_cli_start import JOBS

PAGE = (REPOSITORY / "docs" / "deployment.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.S | re.M)


@pytest.mark.timeout(300)
def test_the_commands_run_and_print_what_the_page_shows(program: Program, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    forks.script(tmp_path / "bin" / "queue-worker")
    Path("jobs.py").write_text(JOBS)
    environment = program.environment(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    ran = 0
    for (kind, text), (after, shown) in zip(BLOCKS, [*BLOCKS[1:], ("", "")], strict=True):
        if kind != "sh":
            continue
        ran += 1
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], env=environment, capture_output=True, text=True, timeout=110
        )
        assert done.returncode == 0, done.stderr + (Path("worker.log").read_text() if ran == 3 else "")
        if after == "text":
            assert done.stdout == shown
    assert ran == 3


def test_the_exit_codes_are_those_of_the_supervisor() -> None:
    codes = {int(code) for line in re.findall(r"^\| ([\d, ]+) \|", PAGE, re.M) for code in line.split(",")}
    assert codes == {0, supervisor.CRASHED, supervisor.GRACE_EXCEEDED, supervisor.RECYCLED, 78, 130, 143}


def test_the_clocks_and_settings_are_those_of_the_code() -> None:
    fields = Settings.model_fields
    assert f"`QUEUE_WORKER_GRACE_SECONDS`, {fields['grace_seconds'].default:g})" in PAGE
    assert f"`QUEUE_WORKER_STOP_TIMEOUT` ({fields['stop_timeout'].default:g})" in PAGE
    for name in ("PROCESSES", "MAX_JOBS", "MAX_MEMORY", "MAX_AGE"):
        assert f"_{name}`" in PAGE
        assert name.lower() in fields
