"""Whoever stops a worker waits for longer than its grace: one test for every way to run it."""

from __future__ import annotations

import re
from pathlib import Path

from queue_worker.config import Settings
from queue_worker.deploy import Place, render
from tests.compose import files, ours, seconds
from tests.dockerfile import ROOT
from tests.manifests import container, pods, variables
from tests.test_compose import GIVEN

GRACE = float(Settings.model_fields["grace_seconds"].default)
STOP = float(Settings.model_fields["stop_timeout"].default)


def of(text: str, kill: str, told: str, unit: float = 1.0) -> tuple[float, float]:
    """The shortest time to the kill that a file sets, and the longest that it tells a worker."""
    kills, tells = re.findall(kill, text, re.MULTILINE), re.findall(told, text, re.MULTILINE)
    assert kills, text
    assert len(tells) == len(kills), text
    return min(map(float, kills)) / unit, max(map(float, tells))


def clocks(folder: Path) -> dict[str, tuple[float, float]]:
    """For each file: when its manager kills, and what it tells the worker about that; both in seconds."""
    place = Place.here(GRACE, STOP)
    all_of_them: dict[str, tuple[float, float]] = {}
    shipped = (ROOT / "ecosystem.config.js").read_text()
    for name, text in {"ecosystem.config.js": shipped, "init pm2": render("pm2", place)["ecosystem.config.js"]}.items():
        told = r'QUEUE_WORKER_STOP_TIMEOUT: "([\d.]+)"'
        all_of_them[name] = of(text, r"^\s*kill_timeout: (\d+),", told, 1000)
    units = {path.name: path.read_text() for path in (ROOT / "deploy").rglob("*.service")}
    for name, text in {**render("systemd", place), **units}.items():
        kill = r"^TimeoutStopSec=([\d.]+)s?$"
        if re.search(r"^ExecStart=.*queue-worker\S* api\b", text, re.MULTILINE):
            # It has no handlers to wait for, and is told nothing.
            all_of_them[name] = (min(map(float, re.findall(kill, text, re.MULTILINE))), STOP)
        else:
            told = r'^Environment="?QUEUE_WORKER_STOP_TIMEOUT=([\d.]+)"?$'
            all_of_them[name] = of(text, kill, told)
    for name, text in files(folder).items():
        for service, one in ours(text, GIVEN).items():
            told = float(one["environment"]["QUEUE_WORKER_STOP_TIMEOUT"])
            all_of_them[f"{name}: {service}"] = (seconds(one["stop_grace_period"]), told)
    for name, pod in pods().items():
        if name.startswith("Deployment/"):
            told = float(variables(pod)["QUEUE_WORKER_STOP_TIMEOUT"])
            hook = container(pod).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["", "0"])
            # Kubernetes counts the hook too.
            all_of_them[name] = (pod["spec"]["terminationGracePeriodSeconds"] - float(hook[1]), told)
    return all_of_them


def test_every_manager_waits_for_longer_than_the_grace_and_no_less_than_it_says(tmp_path: Path) -> None:
    known = clocks(tmp_path)
    assert len(known) >= 10, known
    for name, (kills, told) in known.items():
        assert kills > GRACE, name
        assert kills >= told, name
        assert told > GRACE, name
