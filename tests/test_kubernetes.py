"""The Kubernetes files: valid by the schemas of Kubernetes and KEDA, and right about this program."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import psycopg
import pytest

from queue_worker.config import load_settings
from queue_worker.errors import ConfigError
from tests.dockerfile import ROOT, stages, value
from tests.manifests import FILES, FOLDER, Manifest, container, named, objects, pods, variables
from tests.pages import Reader

PAGE = ROOT / "docs" / "kubernetes.md"
KEDA = json.loads((ROOT / "tests" / "keda.schema.json").read_text())
OLDEST = "1.30"
IMAGE = stages((ROOT / "Dockerfile").read_text())[-1]
WORKLOADS = pods()


def label(one: Manifest) -> str:
    return f"{one['kind']}/{one['metadata']['name']}"


@pytest.mark.parametrize("one", objects(), ids=label)
def test_the_object_is_valid_by_its_schema(one: Manifest) -> None:
    assert "namespace" not in one["metadata"]
    if one["apiVersion"].startswith("keda.sh/"):
        jsonschema.Draft202012Validator(KEDA[one["kind"]]).validate(one)
        return
    for version in (OLDEST, kubernetes_validate.latest_version()):
        kubernetes_validate.validate(one, version, strict=True)


def test_the_schemas_refuse_a_field_that_does_not_exist() -> None:
    scaled = json.loads(json.dumps(named("ScaledObject", "queue-worker")))
    scaled["spec"]["minReplicas"] = scaled["spec"].pop("minReplicaCount")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(KEDA["ScaledObject"]).validate(scaled)
    deployment = json.loads(json.dumps(named("Deployment", "queue-worker")))
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 30
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, OLDEST, strict=True)


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_pod_runs_as_the_images_user_with_nothing_to_write_to_but_its_volumes(name: str) -> None:
    pod, one = WORKLOADS[name]["spec"], container(WORKLOADS[name])
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert f"{security['runAsUser']}:{security['runAsGroup']}" == value(IMAGE, "USER")
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    # Variables of other Services would be read as settings, and nothing here asks Kubernetes anything.
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    mounted = {mount["name"]: mount["mountPath"] for mount in one["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == mounted.keys()
    assert "/tmp" in mounted.values()
    assert one["resources"]["limits"].keys() == one["resources"]["requests"].keys() == {"cpu", "memory"}


def test_only_workers_write_reports_and_mails() -> None:
    writing = {
        name for name, pod in WORKLOADS.items() if "/data" in {m["mountPath"] for m in container(pod)["volumeMounts"]}
    }
    assert writing == {"Deployment/queue-worker"}


@pytest.mark.parametrize("name", WORKLOADS)
def test_what_the_pod_is_given_is_a_configuration(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = WORKLOADS[name]
    given = variables(pod)
    for source in container(pod)["envFrom"]:
        given |= named("Secret", source["secretRef"]["name"])["stringData"]
    known = (ROOT / ".env.example").read_text()
    assert [one for one in given if f"#{one}=" not in known] == []
    if "QUEUE_WORKER_API_TOKEN" in given:
        # The example's own token must never open an API.
        for one, text in given.items():
            monkeypatch.setenv(one, text)
        with pytest.raises(ConfigError, match="QUEUE_WORKER_API_TOKEN"):
            load_settings()
        given["QUEUE_WORKER_API_TOKEN"] = "0123456789abcdef"
    for one, text in given.items():
        monkeypatch.setenv(one, text)
    settings = load_settings({"with_api": "--with-api" in container(pod)["command"]})
    assert settings.transport == "postgres"
    assert (settings.api_host == "127.0.0.1") == ("QUEUE_WORKER_API_TOKEN" not in given)


def test_the_probes_ask_what_is_there() -> None:
    worker = container(WORKLOADS["Deployment/queue-worker"])
    for probe in ("startupProbe", "livenessProbe"):
        assert worker[probe]["exec"]["command"] == ["queue-worker", "health"]
    assert worker["command"] == ["queue-worker", "start", "--with-api"]
    ready = worker["readinessProbe"]["exec"]["command"]
    assert f'"http://127.0.0.1:{load_settings().port}/ready"' in ready[-1]
    compile(ready[-1], "readinessProbe", "exec")
    api = container(WORKLOADS["Deployment/queue-worker-api"])
    assert api["command"] == ["queue-worker", "api"]
    assert [api[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")] == [
        "/health",
        "/health",
        "/ready",
    ]
    [port] = api["ports"]
    assert variables(WORKLOADS["Deployment/queue-worker-api"])["PORT"] == str(port["containerPort"])
    assert str(port["containerPort"]) == value(IMAGE, "EXPOSE")
    [served] = named("Service", "queue-worker-api")["spec"]["ports"]
    assert served["targetPort"] == port["name"]


def test_the_objects_find_each_other() -> None:
    for one in objects("Deployment"):
        assert one["spec"]["selector"]["matchLabels"] == one["spec"]["template"]["metadata"]["labels"]
    labels = {name.partition("/")[2]: pod["metadata"]["labels"] for name, pod in WORKLOADS.items()}
    for one in objects("PodDisruptionBudget"):
        assert one["spec"]["selector"]["matchLabels"] == labels[one["metadata"]["name"]]
    assert named("Service", "queue-worker-api")["spec"]["selector"] == labels["queue-worker-api"]
    assert len({tuple(sorted(one.items())) for one in labels.values()}) == len(labels)
    assert len({container(pod)["image"] for pod in WORKLOADS.values()}) == 1
    scaled = named("ScaledObject", "queue-worker")["spec"]
    assert named("Deployment", scaled["scaleTargetRef"]["name"])
    [trigger] = scaled["triggers"]
    [reference] = named("TriggerAuthentication", trigger["authenticationRef"]["name"])["spec"]["secretTargetRef"]
    assert reference["parameter"] == "connection"
    assert reference["key"] in named("Secret", reference["name"])["stringData"]


def test_keda_counts_what_waits_and_runs_as_a_reader(db: psycopg.Connection[Any]) -> None:
    [trigger] = named("ScaledObject", "queue-worker")["spec"]["triggers"]
    query = trigger["metadata"]["query"].encode()

    def asked() -> Any:
        with db.transaction():
            db.execute("set local role queue_reader")
            return db.execute(query).fetchall()

    assert asked() == [(0,)]
    for queue in ("email", "reports"):
        db.execute("select queue_worker.create_queue(%s)", [queue])
    db.execute("select queue_worker.send('reports', '{}')")
    db.execute("select queue_worker.send('email', '{}', delay_seconds => 600)")
    for _ in range(7):
        db.execute("select queue_worker.send('email', '{}')")
    assert asked() == [(7,)]
    db.execute("select * from queue_worker.claim('email', 3, 60)")
    assert asked() == [(7,)]
    db.execute("select queue_worker.pause('email', 'a test')")
    assert asked() == [(3,)]
    assert float(trigger["metadata"]["targetQueryValue"]) > 0


def test_the_page_names_every_file_and_its_blocks_run(dsn: str, tmp_path: Path) -> None:
    text = PAGE.read_text()
    assert len(text.splitlines()) <= 130
    assert [name for name in FILES if name not in text] == []
    for name in re.findall(r"[\w.-]+\.yaml", text):
        assert (FOLDER / name).exists() or name == "secret.yaml", name
    assert Reader(tmp_path, dsn).read(PAGE) > 0
