"""Compose files, with their variables filled in as Compose does it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from queue_worker.deploy import Place, render
from tests.dockerfile import ROOT

SHIPPED = ("compose.yaml", "compose.prod.yaml")

_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?:(:[-?])([^}]*))?\})")


class Missing(Exception):
    """A file wants a variable that is not there."""


def fill(text: str, given: Mapping[str, str]) -> str:
    """Replace `${NAME}`, `${NAME:-default}` and `${NAME:?why}`; raises Missing for the last where NAME is not given."""

    def one(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if name is None:
            return "$"
        if kind == ":?" and not given.get(name):
            raise Missing(name)
        return given.get(name) or (rest if kind == ":-" else "")

    return _VARIABLE.sub(one, text)


def parsed(text: str, given: Mapping[str, str]) -> dict[str, Any]:
    """A file as Compose reads it: YAML first, then the variables in its texts."""

    def deep(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: deep(one) for name, one in node.items()}
        if isinstance(node, list):
            return [deep(one) for one in node]
        return fill(node, given) if isinstance(node, str) else node

    found: dict[str, Any] = deep(yaml.safe_load(text))
    return found


def wanted(text: str) -> dict[str, str]:
    """The variables that a file takes from outside, each with how: `:-`, `:?` or nothing."""
    return {name: kind for name, kind, _ in _VARIABLE.findall(text) if name}


def files(folder: Path) -> dict[str, str]:
    """The text of every Compose file: those shipped, and what `init compose` writes with and without a Dockerfile."""
    found = {name: (ROOT / name).read_text() for name in SHIPPED}
    for name, make in (("init", False), ("init beside a Dockerfile", True)):
        place = folder / name
        place.mkdir()
        if make:
            (place / "Dockerfile").touch()
        found[name] = render("compose", replace(Place.here(25, 30), folder=place))["compose.yaml"]
    return found


def services(text: str, given: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The services of a file by name."""
    found: dict[str, dict[str, Any]] = parsed(text, given)["services"]
    return found


def ours(text: str, given: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The services that run a worker or the API for good."""
    words = (["queue-worker", "start"], ["queue-worker", "api"])
    return {name: one for name, one in services(text, given).items() if one.get("command", [])[:2] in words}


def seconds(duration: str) -> float:
    """A duration such as `1m30s`."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    assert re.fullmatch(r"(\d+(\.\d+)?[hms])+", duration), duration
    return sum(float(number) * units[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([hms])", duration))
