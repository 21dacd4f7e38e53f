"""The name of our schema in this process: `queue_worker`, or another one where a database holds two environments.

Everything of ours is written with the usual name; with another one the texts are renamed before they are sent. What
goes by it: functions, tables, the channel of NOTIFY, the worker's role. Queues are pgmq's, each is of one environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

USUAL = "queue_worker"
FORM = r"[a-z_][a-z0-9_]{0,40}"
"""Room for `_data` behind it: PostgreSQL cuts names after 63 bytes."""

# As a whole word, also with `_data` behind it; `queue_worker_wake` and the like are other names. %s: inside a format.
_WORD = re.compile(r"(?:(?<!\w)|(?<=%s))queue(\\?)_worker(?=(?:_data)?(?!\w))")

# The settings say it too, and check it; a producer that brings its own connection does not read them.
_given = os.environ.get("QUEUE_WORKER_SCHEMA", "")
_name = _given if re.fullmatch(FORM, _given) else USUAL


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
    # A pattern of LIKE has its underscore escaped.
    return _WORD.sub(lambda found: name.replace("_", r"\_") if found[1] else name, text)


def renamed_arguments(function: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of a call; those of `finish` name functions themselves."""
    if _name == USUAL or function != "queue_worker.finish":
        return params
    calls = type(params["calls"])({**one, "function": renamed(one["function"])} for one in params["calls"])
    return {**params, "calls": calls}
