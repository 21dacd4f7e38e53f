"""`queue-worker init`: the files fit the folder and the environment they are written in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from queue_worker.deploy import Place, render
from tests.blackbox.program import REPOSITORY, Program

SCRIPT = Path(sys.executable).parent / "queue-worker"


@pytest.fixture(params=["project", "my project 100% $HOME"])
def folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, once with a name that must be quoted."""
    path = Path(request.param).absolute()
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def test_the_shipped_pm2_file_is_what_init_writes() -> None:
    place = Place(REPOSITORY, REPOSITORY / ".venv" / "bin" / "queue-worker", "", 25, 30)
    assert render("pm2", place) == (REPOSITORY / "ecosystem.config.js").read_text()


def test_a_file_that_is_there_is_written_over_only_by_force(bare: Program) -> None:
    assert bare.ok("init", "compose").out == "compose.yaml written\nnext: docker compose up -d\n"
    Path("compose.yaml").write_text("mine")
    done = bare("init", "compose")
    assert (done.code, done.line) == (
        2,
        "compose.yaml is there already: --force writes over it, --print shows the new one",
    )
    assert Path("compose.yaml").read_text() == "mine"
    bare.ok("init", "compose", "--force")
    assert Path("compose.yaml").read_text() == bare.ok("init", "compose", "--print").out
    assert bare("init", "upstart").code == 2


def test_the_files_carry_the_clocks_that_are_set(bare: Program) -> None:
    Path(".env").write_text("QUEUE_WORKER_GRACE_SECONDS=50\nQUEUE_WORKER_STOP_TIMEOUT=60\n")
    assert "kill_timeout: 60000," in bare.ok("init", "pm2", "--print").out
    unit = bare.ok("init", "systemd", "--print").out
    assert "\nTimeoutStopSec=60\n" in unit
    assert "\nEnvironment=QUEUE_WORKER_STOP_TIMEOUT=60\n" in unit
    assert "stop_grace_period: 60s" in bare.ok("init", "compose", "--print").out
    for kind in ("pm2", "systemd", "compose"):
        assert "longer than the grace (50 s)" in bare.ok("init", kind, "--print").out.lower().replace("\n", " ")


def test_the_pm2_file_names_this_environment(bare: Program, folder: Path) -> None:
    bare.ok("init", "pm2")
    text = Path("ecosystem.config.js").read_text()
    assert f'script: "{os.path.relpath(SCRIPT, folder)}"' in text


def test_compose_builds_where_there_is_a_dockerfile(bare: Program) -> None:
    assert "    image: queue-worker\n" in bare.ok("init", "compose", "--print").out
    Path("Dockerfile").touch()
    assert "    build: .\n" in bare.ok("init", "compose", "--print").out


def test_the_unit_restarts_what_a_restart_can_mend(bare: Program) -> None:
    lines = bare.ok("init", "systemd", "--print").out.splitlines()
    for line in ("Type=notify", "Restart=always", "RestartPreventExitStatus=78", "KillMode=mixed"):
        assert line in lines
    assert "SuccessExitStatus=75 130 143" in lines


@pytest.mark.full
def test_systemd_accepts_the_unit(bare: Program, folder: Path) -> None:
    tool = shutil.which("systemd-analyze")
    assert tool, "systemd-analyze is missing: install the package systemd"
    bare.ok("init", "systemd")
    # An unknown key or a bad value is no error for the tool: it says so and exits with 0.
    done = subprocess.run([tool, "verify", "./queue-worker.service"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    # It has read the folder as it is: a working directory that is missing would be named.
    assert f"WorkingDirectory={str(folder).replace('%', '%%')}\n" in Path("queue-worker.service").read_text()
    assert str(SCRIPT).replace("%", "%%") in Path("queue-worker.service").read_text()
