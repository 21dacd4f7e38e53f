"""The processes around a worker: its own host, the parent of several, and the one that reloads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from loguru import logger

from queue_worker.config import Settings
from queue_worker.errors import UsageError
from queue_worker.host import Host
from queue_worker.manager import Manager
from queue_worker.parent_link import ParentLink
from queue_worker.processes import Plan
from queue_worker.recycling import Recycling
from queue_worker.supervisor import Signals


@dataclass(frozen=True, slots=True)
class ProcessHost:
    """The host of the worker in this process; `working` is called when its service begins to heed signals."""

    host: Host
    working: Callable[[], None]


def host_of(settings: Settings, descriptor: int | None) -> ProcessHost:
    """Return the host of this process; `descriptor`: that of the channel to its parent, if it has one."""
    signals = Signals(repeats=descriptor is None)
    recycling = Recycling(settings.max_jobs, settings.max_memory, settings.max_age, wake=signals.arrived.set)
    if descriptor is None:
        return ProcessHost(Host(signals, Manager(), recycling), lambda: None)
    link = ParentLink(descriptor, signals)
    return ProcessHost(Host(signals, link, recycling), link.working)


def own_command() -> list[str]:
    """Return the command that this process was started with, for the same interpreter."""
    return [sys.executable, *sys.orig_argv[1:]]


def become_parent(settings: Settings) -> NoReturn:
    """Turn this process, which keeps its id, into the small parent of several."""
    arguments = plan_of(settings).arguments()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(arguments[0], arguments)  # noqa: S606 - our own interpreter and module, no shell


def run_reload(settings: Settings) -> int:
    """Run one worker and start it anew whenever a file of the app changes; returns the exit code."""
    if settings.processes > 1:
        raise UsageError("--reload and --processes: give one of them")
    if settings.app is None:
        raise UsageError("--reload watches the files of your app: name it by --app, as in --app mypkg.jobs:app")
    try:
        from queue_worker.reload import Reloader
    except ModuleNotFoundError as error:
        raise UsageError(f"--reload needs {error.name}: pip install 'queue-worker[reload]'") from None
    return Reloader(plan_of(settings), settings.app).run()


def plan_of(settings: Settings) -> Plan:
    """Return what a parent needs to know."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    return Plan(
        command=own_command(),
        count=settings.processes,
        grace=settings.grace_seconds,
        stop_timeout=settings.stop_timeout,
        state_dir=str(settings.state_dir.absolute()),
        burst=settings.burst,
        log_json=as_json,
        log_level=logger.level(settings.log_level).no,
    )
