"""Reading the sources of configuration: command line, environment, `.env` file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import AliasChoices
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource

from queue_worker.config_options import OPTIONS, PREFIX, QUEUE_PREFIX, Layer, fold
from queue_worker.errors import ConfigError

COMMAND_LINE = "command line"
ENVIRONMENT = "environment"
DEFAULT = "default"
DEFAULT_FILE = Path(".env")

_OPTION_VARIABLES = {PREFIX + option.upper(): option for option in OPTIONS}


def variables(model: type[BaseSettings]) -> dict[str, tuple[str, ...]]:
    """Return the variable names of each field of `model`; the first one is the name to show."""
    names: dict[str, tuple[str, ...]] = {}
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        if isinstance(alias, AliasChoices):
            names[name] = tuple(str(choice) for choice in alias.choices)
        else:
            names[name] = (str(alias) if alias else PREFIX + name.upper(),)
    return names


def read_layers(
    model: type[BaseSettings], overrides: Mapping[str, Any], env_file: Path | None
) -> tuple[tuple[Layer, ...], list[str]]:
    """Return what each source says, the strongest first, and warnings of one line each.

    `env_file` None stands for `.env` in the working directory, which need not exist. Raises ConfigError for a file
    that cannot be read and for an unknown option of a queue.
    """
    warnings: list[str] = []
    layers = [_from_overrides(model, overrides)]
    layers.append(_from_variables(model, ENVIRONMENT, EnvSettingsSource(model).env_vars, warnings))
    path = DEFAULT_FILE if env_file is None else env_file
    if env_file is None and path.is_dir():
        pass  # a virtual environment may bear this name
    elif path.exists():
        # A byte order mark, as Windows editors write it, must not become a part of the first name.
        read = _read_file(model, path)
        layers.append(_from_variables(model, str(path), read, warnings))
        warnings.extend(_too_open(path, model, read))
    elif env_file is not None:
        raise ConfigError(f"--env-file {env_file}: there is no such file")
    return tuple(layers), warnings


def _read_file(model: type[BaseSettings], path: Path) -> Mapping[str, str | None]:
    try:
        return DotEnvSettingsSource(model, env_file=path, env_file_encoding="utf-8-sig").env_vars
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path} cannot be read: {why}") from None


def _from_overrides(model: type[BaseSettings], overrides: Mapping[str, Any]) -> Layer:
    values: dict[str, Any] = {}
    options: dict[str, Any] = {}
    queues: dict[str, dict[str, Any]] = {}
    for name, value in overrides.items():
        if value is None:
            continue
        if name in model.model_fields:
            values[name] = value
        elif name in OPTIONS:
            options[name] = value
        elif name == "queues":
            for queue, chosen in value.items():
                queues[fold(queue)] = {_queue_option(option, f"--queues {queue}"): chosen[option] for option in chosen}
        else:
            raise ConfigError(f"unknown setting {name!r}")
    return Layer(COMMAND_LINE, values, options, queues)


def _from_variables(
    model: type[BaseSettings], source: str, found: Mapping[str, str | None], warnings: list[str]
) -> Layer:
    # An empty value is the same as none: compose files pass `NAME=${NAME:-}` for what is not set.
    # Trailing carriage returns come from files with Windows line ends.
    present = {name.upper(): value.strip("\r\n") for name, value in found.items() if value}
    names = variables(model)
    values: dict[str, Any] = {}
    for field, choices in names.items():
        value = next((present[choice] for choice in choices if choice in present), None)
        if value is not None:
            values[field] = value
    options = {option: present[name] for name, option in _OPTION_VARIABLES.items() if name in present}
    queues = _queues(source, present)
    every = [choice for choices in names.values() for choice in choices if choice.startswith(PREFIX)]
    warnings.extend(_unknown(source, present, [*every, *_OPTION_VARIABLES]))
    return Layer(source, values, options, queues)


def _queues(source: str, present: Mapping[str, str]) -> dict[str, dict[str, str]]:
    queues: dict[str, dict[str, str]] = {}
    for name, value in present.items():
        if not name.startswith(QUEUE_PREFIX):
            continue
        # From the right, because a queue's name may hold '__' itself.
        queue, separator, option = name[len(QUEUE_PREFIX) :].rpartition("__")
        if not separator or not queue:
            raise ConfigError(f"{name} must be {QUEUE_PREFIX}<QUEUE>__<OPTION>, as {QUEUE_PREFIX}EMAIL__BATCH_SIZE")
        options = queues.setdefault(fold(queue), {})
        field = _queue_option(option.lower(), name)
        if field in options:
            raise ConfigError(f"{name} is set twice in the {source}, with '-' and with '_'; keep one")
        options[field] = value
    return queues


def _queue_option(option: str, label: str) -> str:
    if option in OPTIONS:
        return option
    listed = ", ".join(name.upper() for name in OPTIONS)
    raise ConfigError(f"{label}: unknown option {option.upper()} of a queue; known: {listed}")


def _unknown(source: str, present: Mapping[str, str], names: list[str]) -> Iterable[str]:
    for name in sorted(present):
        if name.startswith(PREFIX) and not name.startswith(QUEUE_PREFIX) and name not in names:
            yield f"{name} (in {source}) is not a setting and is ignored; {_hint(name, names)}"


def _hint(name: str, names: list[str]) -> str:
    # Without the prefix, which makes all of them look alike.
    near = get_close_matches(name.removeprefix(PREFIX), [known.removeprefix(PREFIX) for known in names], 1)
    return f"did you mean {PREFIX}{near[0]}?" if near else "`queue-worker config` lists all"


def _too_open(path: Path, model: type[BaseSettings], found: Mapping[str, str | None]) -> Iterable[str]:
    secret = {
        choice
        for field, choices in variables(model).items()
        if "SecretStr" in str(model.model_fields[field].annotation)
        for choice in choices
    }
    held = sorted(name.upper() for name, value in found.items() if value and name.upper() in secret)
    mode = stat.S_IMODE(path.stat().st_mode)
    if held and os.name == "posix" and path.is_file() and mode & 0o077:
        yield f"{path} holds {held[0]} and others may read it (mode {mode:04o}): chmod 600 {path}"
