"""What is shipped: the wheel and what it needs, the Makefile, the PM2 file, and that they agree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from queue_worker._version import __version__
from queue_worker.config import Settings

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())

WHAT_IS_INSTALLED = """
import json
from importlib.metadata import entry_points, version
from pathlib import Path
import queue_worker._version
from queue_worker import migrate
package = Path(queue_worker._version.__file__).parent
[script] = entry_points(group="console_scripts", name="queue-worker")
print(json.dumps({
    "package": str(package),
    "version": version("queue-worker"),
    "script": script.value,
    "sql_dir": str(migrate.sql_dir()),
    "sql": sorted(str(path.relative_to(migrate.sql_dir())) for path in migrate.sql_dir().rglob("*.sql")),
    "templates": sorted(str(path.relative_to(package)) for path in package.rglob("templates/**/*") if path.is_file()),
    "typed": (package / "py.typed").is_file(),
}))
"""


def build_wheel(target: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(target), *options]
    subprocess.run([*command, str(REPOSITORY)], check=True, cwd=target)
    [wheel] = target.glob("queue_worker-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"), "--no-build-isolation")


def make_venv(directory: Path) -> Path:
    """A new environment without pip; returns its Python."""
    venv.create(directory, with_pip=False, symlinks=True)
    return directory / "bin" / "python"


def install(python: Path, *what: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile", *what]
    subprocess.run(command, check=True)


def ask(python: Path, code: str, where: Path) -> Any:
    # -I: neither the working directory nor PYTHONPATH may lend it the source tree.
    return json.loads(subprocess.check_output([python, "-I", "-c", code], cwd=where, text=True))


def shipped(folder: str, pattern: str, base: Path) -> list[str]:
    return sorted(str(path.relative_to(base)) for path in (REPOSITORY / folder).rglob(pattern) if path.is_file())


# --------------------------------------------------------------------------------------------------- the wheel


def test_an_installed_wheel_finds_its_sql_files_and_templates(wheel: Path, tmp_path: Path) -> None:
    python = make_venv(tmp_path / "venv")
    install(python, "--no-deps", str(wheel))
    # The libraries of this environment, without the package: .pth files are not followed from a line of another one.
    [site] = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = ask(python, WHAT_IS_INSTALLED, tmp_path)
    assert found["package"] == str(site / "queue_worker")
    assert found["sql_dir"] == str(site / "queue_worker" / "sql")
    assert found["sql"] == shipped("sql", "*.sql", REPOSITORY / "sql")
    assert len(found["sql"]) >= 5
    assert found["templates"] == shipped("queue_worker", "templates/**/*", REPOSITORY / "queue_worker")
    assert len(found["templates"]) >= 1
    assert found["typed"]
    assert found["version"] == __version__
    assert found["script"] == "queue_worker.cli:main"
    assert (tmp_path / "venv" / "bin" / "queue-worker").is_file()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    info = f"queue_worker-{__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"queue_worker", info}
    assert f"{info}/licenses/LICENSE" in names
    assert not [name for name in names if re.search(r"__pycache__|\.pyc$|\.env|\.DS_Store|/tests?/", name)]
    assert len(names) == len(set(names))


def test_the_wheel_names_no_path_of_the_machine_that_built_it(wheel: Path) -> None:
    places = {str(REPOSITORY), str(Path.home()), str(wheel.parent), sys.prefix}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            for place in places - {"/"}:
                assert f"{place}/".encode() not in content, f"{name} names {place}"


def test_the_same_sources_make_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    assert build_wheel(tmp_path, "--no-build-isolation").read_bytes() == wheel.read_bytes()


@pytest.mark.full
@pytest.mark.timeout(400)
def test_a_clean_environment_gets_everything_from_the_wheel(tmp_path: Path) -> None:
    """As a user installs it: built in isolation, with all that it depends on."""
    built = build_wheel(tmp_path)
    python = make_venv(tmp_path / "venv")
    install(python, f"{built}[embedded,api,stripe,pdf]")
    found = ask(python, WHAT_IS_INSTALLED, tmp_path)
    assert found["sql"] == shipped("sql", "*.sql", REPOSITORY / "sql")
    program = tmp_path / "venv" / "bin" / "queue-worker"
    answer = subprocess.run([program, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "migrate" in answer.stdout


# ------------------------------------------------------------------------------------------------ dependencies


def requirements() -> list[str]:
    listed = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        listed += extra
    return sorted(set(listed))


@pytest.mark.parametrize("requirement", requirements())
def test_every_dependency_has_a_lower_and_an_upper_bound(requirement: str) -> None:
    operators = {part.operator for part in Requirement(requirement).specifier}
    assert operators & {">=", "~="}
    assert operators & {"<", "~="}


def test_the_extra_and_the_group_for_development_are_the_same() -> None:
    assert PROJECT["dependency-groups"]["dev"] == PROJECT["project"]["optional-dependencies"]["dev"]


# ------------------------------------------------------------------------------------------------ the Makefile


def run_make(directory: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--dry-run", *arguments]
    return subprocess.check_output(command, cwd=directory, env=environment, text=True, stderr=subprocess.STDOUT)


def copy_of_the_makefile(directory: Path) -> Path:
    directory.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, directory)
    return directory


@pytest.mark.parametrize("folder", ["plain", "with spaces and 'quotes'"])
def test_make_demo_sets_everything_up_itself(tmp_path: Path, folder: str) -> None:
    steps = run_make(copy_of_the_makefile(tmp_path / folder), "demo")
    order = ["-m venv", "pip install", '".[embedded,pdf]"', ".venv/bin/queue-worker demo"]
    places = [steps.index(step) for step in order]
    assert places == sorted(places)


def test_make_demo_does_not_install_again(tmp_path: Path) -> None:
    directory = copy_of_the_makefile(tmp_path / "again")
    (directory / ".venv").mkdir()
    for stamp in (".created", ".demo"):
        (directory / ".venv" / stamp).touch()
    assert run_make(directory, "demo").strip() == ".venv/bin/queue-worker demo"


def test_the_makefile_installs_extras_that_exist() -> None:
    text = (REPOSITORY / "Makefile").read_text()
    named = set(re.findall(r'EXTRAS := (\S+)|"\.\[([a-z,]+)\]"', text))
    extras = {extra for pair in named for part in pair for extra in part.split(",") if extra}
    assert extras == set(PROJECT["project"]["optional-dependencies"])


def test_make_runs_every_test_once() -> None:
    steps = run_make(REPOSITORY, "test", "test-all", "--always-make")
    runs = re.findall(r'-m pytest .* -m ("not full"|full)$', steps, re.MULTILINE)
    assert runs == ['"not full"', "full"]


# ---------------------------------------------------------------------------------------------------------- PM2


def default(setting: str) -> float:
    return float(Settings.model_fields[setting].default)


def pm2_setting(name: str) -> str:
    text = (REPOSITORY / "ecosystem.config.js").read_text()
    found = re.search(rf"^\s*{name}: (.+?),?(?: //.*)?$", text, re.MULTILINE)
    assert found, f"ecosystem.config.js does not set {name}"
    return found[1]


def test_pm2_waits_longer_than_the_grace_and_tells_the_worker_how_long() -> None:
    kill = int(pm2_setting("kill_timeout")) / 1000
    assert kill > default("grace_seconds")
    assert kill == default("stop_timeout")
    assert f'QUEUE_WORKER_STOP_TIMEOUT: "{kill:g}"' in pm2_setting("env")


def test_pm2_leaves_a_clean_end_and_a_configuration_error_alone_and_restarts_the_rest() -> None:
    assert json.loads(pm2_setting("stop_exit_codes")) == [78]
    assert pm2_setting("autorestart") == "true"
    assert pm2_setting("exp_backoff_restart_delay").isdecimal()


def test_pm2_runs_the_console_script_without_touching_its_log_lines() -> None:
    assert pm2_setting("script") == '".venv/bin/queue-worker"'
    assert pm2_setting("interpreter") == '"none"'
    assert pm2_setting("time") == "false"
    assert pm2_setting("merge_logs") == "true"


@pytest.mark.full
def test_pm2_reads_the_file_as_meant() -> None:
    script = "process.stdout.write(JSON.stringify(require('./ecosystem.config.js')))"
    apps = json.loads(subprocess.check_output(["node", "-e", script], cwd=REPOSITORY, text=True))["apps"]
    assert [(app["name"], app["args"]) for app in apps] == [("queue-worker", "start"), ("queue-worker-api", "api")]
    for app in apps:
        assert (app["cwd"], app["script"]) == (str(REPOSITORY), ".venv/bin/queue-worker")
        assert (app["kill_timeout"], app["stop_exit_codes"], app["wait_ready"]) == (30000, [78], True)
