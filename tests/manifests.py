"""The Kubernetes objects of deploy/kubernetes."""

from __future__ import annotations

from typing import Any

import yaml

from tests.dockerfile import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))

Manifest = dict[str, Any]


def objects(kind: str = "") -> list[Manifest]:
    """All objects, or those of one kind."""
    found = [one for name in FILES for one in yaml.safe_load_all((FOLDER / name).read_text())]
    return [one for one in found if kind in ("", one["kind"])]


def named(kind: str, name: str) -> Manifest:
    """One object."""
    [found] = [one for one in objects(kind) if one["metadata"]["name"] == name]
    return found


def pods() -> dict[str, Manifest]:
    """The pod template of every workload, by `Kind/name`."""
    return {
        f"{one['kind']}/{one['metadata']['name']}": one["spec"]["template"]
        for one in objects()
        if one["kind"] in ("Deployment", "Job")
    }


def container(pod: Manifest) -> Manifest:
    """The one container of a pod template."""
    [found] = pod["spec"]["containers"]
    return dict(found)


def variables(pod: Manifest) -> dict[str, str]:
    """What the container's `env` sets."""
    return {one["name"]: one["value"] for one in container(pod).get("env", [])}
