"""Pydantic's errors as one line that names the setting and says what is allowed, without the value."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from typing import Any, Literal

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from queue_worker.errors import ConfigError

_NOUNS = {int: "an integer", float: "a number"}


def config_error(error: ValidationError, model: type[BaseModel], label: Callable[[str], str]) -> ConfigError:
    """Return the ConfigError for `error`; `label` gives the name of a field as the user writes it.

    The value never appears: it may be a secret that was put under the wrong name.
    """
    lines: list[str] = []
    seen: set[str] = set()
    for item in error.errors(include_url=False, include_input=False):
        name = str(item["loc"][0]) if item["loc"] else ""
        if name in seen:
            continue
        seen.add(name)
        if item["type"] == "value_error":
            told = str(item["ctx"]["error"])
            lines.append(f"{label(name)} {told}" if name else told)
        else:
            lines.append(f"{label(name)} must be {rule(model.model_fields[name])}")
    return ConfigError("; ".join(lines))


def rule(field: FieldInfo) -> str:
    """Say in words what `field` accepts, for example `an integer between 1 and 65535`."""
    kind = _without_none(field.annotation)
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(str(value) for value in typing.get_args(kind))
    if kind is bool:
        return "true or false"
    noun = _NOUNS.get(kind)
    return noun + _bounds(field.metadata) if noun else "text"


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
        return kinds[0]
    return annotation


def _bounds(metadata: list[Any]) -> str:
    low = next((m.ge for m in metadata if isinstance(m, annotated_types.Ge)), None)
    above = next((m.gt for m in metadata if isinstance(m, annotated_types.Gt)), None)
    high = next((m.le for m in metadata if isinstance(m, annotated_types.Le)), None)
    if low is not None and high is not None:
        return f" between {low} and {high}"
    if above is not None:
        return f" above {above}" + (f" and at most {high}" if high is not None else "")
    return f" of at least {low}" if low is not None else ""
