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


def test_the_shipped_files_are_what_init_writes() -> None:
    place = Place(REPOSITORY, REPOSITORY / ".venv" / "bin" / "queue-worker", "", 25, 30)
    assert render("pm2", place) == {"ecosystem.config.js": (REPOSITORY / "ecosystem.config.js").read_text()}
    home = Path("/opt/queue-worker")
    units = render("systemd", Place(home, home / ".venv" / "bin" / "queue-worker", "queue-worker", 25, 30))
    shipped = {path.name: path.read_text() for path in (REPOSITORY / "deploy" / "systemd").iterdir()}
    assert units == shipped


def test_a_file_that_is_there_is_written_over_only_by_force(bare: Program) -> None:
    assert bare.ok("init", "compose").out == "compose.yaml written\nnext: docker compose up -d\n"
    Path("compose.yaml").write_text("mine")
    done = bare("init", "compose")
    assert (done.code, done.line) == (2, "compose.yaml is there already: --force writes over, --print shows")
    assert Path("compose.yaml").read_text() == "mine"
    bare.ok("init", "compose", "--force")
    assert Path("compose.yaml").read_text() == bare.ok("init", "compose", "--print").out
    assert bare("init", "upstart").code == 2


def test_of_several_files_none_is_written_where_one_is_there(bare: Program) -> None:
    Path("queue-worker@.service").write_text("mine")
    Path("queue-worker-api.service").write_text("mine")
    done = bare("init", "systemd")
    taken = "queue-worker@.service and queue-worker-api.service are there already: --force writes over, --print shows"
    assert (done.code, done.line) == (2, taken)
    assert not Path("queue-worker.service").exists()
    written = bare.ok("init", "systemd", "--force").out.splitlines()
    assert written == [
        "queue-worker.service written",
        "queue-worker@.service written",
        "queue-worker-api.service written",
        "next: sudo cp " + " ".join(written[n].split()[0] for n in range(3)) + " /etc/systemd/system/"
        " && sudo systemctl enable --now queue-worker queue-worker-api",
    ]


def test_without_the_extra_there_is_no_api_to_run() -> None:
    place = Place(REPOSITORY, REPOSITORY / ".venv" / "bin" / "queue-worker", "", 25, 30, api=False)
    assert list(render("systemd", place)) == ["queue-worker.service", "queue-worker@.service"]
    (text,) = render("pm2", place).values()
    assert "queue-worker-api" not in text
    assert "pip install 'queue-worker[api]'" in text


def test_the_files_carry_the_clocks_that_are_set(bare: Program) -> None:
    Path(".env").write_text("QUEUE_WORKER_GRACE_SECONDS=50\nQUEUE_WORKER_STOP_TIMEOUT=60\n")
    assert "kill_timeout: 60000," in bare.ok("init", "pm2", "--print").out
    units = bare.ok("init", "systemd", "--print").out
    assert units.count("\nTimeoutStopSec=60\n") == 3
    assert units.count("\nEnvironment=QUEUE_WORKER_STOP_TIMEOUT=60\n") == 2
    assert "stop_grace_period: 60s" in bare.ok("init", "compose", "--print").out
    for kind in ("pm2", "systemd", "compose"):
        assert "longer than the grace (50 s)" in bare.ok("init", kind, "--print").out.lower().replace("\n", " ")


def test_the_pm2_file_names_this_environment(bare: Program, folder: Path) -> None:
    bare.ok("init", "pm2")
    text = Path("ecosystem.config.js").read_text()
    assert f'script: "{os.path.relpath(SCRIPT, folder)}"' in text


def test_compose_builds_where_there_is_a_dockerfile(bare: Program) -> None:
    assert "    image: queue-worker  # made by" in bare.ok("init", "compose", "--print").out
    Path("Dockerfile").touch()
    assert "    build: .\n" in bare.ok("init", "compose", "--print").out


def test_the_unit_restarts_what_a_restart_can_mend(bare: Program) -> None:
    lines = bare.ok("init", "systemd", "--print").out.splitlines()
    for line in ("Type=notify", "Restart=always", "RestartPreventExitStatus=78", "KillMode=mixed"):
        assert line in lines
    assert "SuccessExitStatus=75 130 143" in lines


UNITS = ("./queue-worker.service", "./queue-worker@email.service", "./queue-worker-api.service")


def systemd_analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("systemd-analyze")
    assert tool, "systemd-analyze is missing: install the package systemd"
    return subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.full
def test_systemd_accepts_the_units(bare: Program, folder: Path) -> None:
    bare.ok("init", "systemd")
    # An unknown key or a bad value is no error for the tool: it says so and exits with 0.
    done = systemd_analyze("verify", *UNITS)
    assert (done.returncode, done.stderr) == (0, "")
    # It has read the folder as it is: a working directory that is missing would be named.
    for name in ("queue-worker.service", "queue-worker@.service", "queue-worker-api.service"):
        text = Path(name).read_text()
        assert f"WorkingDirectory={str(folder).replace('%', '%%')}\n" in text
        assert str(SCRIPT).replace("%", "%%") in text


@pytest.mark.full
def test_the_units_are_hardened(bare: Program) -> None:
    bare.ok("init", "systemd")
    for unit in UNITS:
        # Of a hundred; what is left is the network, other users, and system calls that handlers may want.
        done = systemd_analyze("security", "--offline=true", "--threshold=25", "--no-pager", unit)
        assert done.returncode == 0, done.stdout
