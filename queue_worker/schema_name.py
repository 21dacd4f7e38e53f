"""The name of our schema in this process: `queue_worker`, or another one where a database holds two environments.

Everything of ours is written with the usual name; with another one the texts are renamed before they are sent. What
goes by it: functions, tables, the channel of NOTIFY, and all roles: one owner for two environments could read and drop
the queues of both. Queues are pgmq's, each is of one environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from queue_worker.errors import ConfigError

USUAL = "queue_worker"
_FORM = re.compile(r"(?!pg_)(?!.*_data\Z)[a-z_][a-z0-9_]{0,40}\Z")
"""Room for `_producer` behind it: PostgreSQL cuts names after 63 bytes. `x_data` is the other schema of `x`."""

RULE = "must be 1 to 41 of a-z, 0-9 and _, not begin with a digit or pg_, and not end with _data"

# As a whole word, also with `_data` behind it; `queue_worker_wake` and the like are other names. %s: inside a format.
_WORD = re.compile(r"(?:(?<!\w)|(?<=%s))queue(\\?)_worker(?=(?:_data)?(?!\w))")
_ROLE = re.compile(r"(?<!\w)queue(_(?:owner|producer|reader|operator))(?!\w)")

# The settings say it too; a producer that brings its own connection does not read them.
_name = os.environ.get("QUEUE_WORKER_SCHEMA") or USUAL


def fits(name: str) -> bool:
    """Whether an environment can have this name."""
    return bool(_FORM.match(name))


def use(name: str) -> None:
    """From now on this process speaks to the schema `name`: one process, one environment."""
    global _name  # noqa: PLW0603
    _name = name


def current() -> str:
    """Return the name of the schema that this process speaks to."""
    return _name


def renamed(text: str) -> str:
    """Return SQL, or the name of a function, for the schema of this process."""
    return text if _name == USUAL else _renamed(text, _name)


@lru_cache(maxsize=512)
def _renamed(text: str, name: str) -> str:
    if not fits(name):
        raise ConfigError(f"QUEUE_WORKER_SCHEMA {RULE}")
    # A pattern of LIKE has its underscore escaped.
    named = _WORD.sub(lambda found: name.replace("_", r"\_") if found[1] else name, text)
    return _ROLE.sub(lambda found: name + found[1], named)


def renamed_arguments(function: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of a call; those of `finish` name functions themselves."""
    if _name == USUAL or function != "queue_worker.finish":
        return params
    calls = type(params["calls"])({**one, "function": renamed(one["function"])} for one in params["calls"])
    return {**params, "calls": calls}
