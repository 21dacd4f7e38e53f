"""`queue-worker start`: runs the worker in this process, or in several under a parent."""

from __future__ import annotations

import signal
import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any

import typer
from loguru import logger

from queue_worker import log, log_events, tracing
from queue_worker.cli import common
from queue_worker.cli.application import load_app
from queue_worker.cli.failure import FAILED
from queue_worker.config import Settings
from queue_worker.errors import QueueWorkerError
from queue_worker.platforms import require_posix

if TYPE_CHECKING:
    from queue_worker.cli.parents import ProcessHost

_RELOAD_GRACE = 2.0
"""Seconds that handlers get when a file has changed: who develops does not wait for the grace of production."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    common.command(app, "start")(start)


def start(
    queues: Annotated[
        list[str] | None,
        typer.Option(
            "--queues", "-q", metavar="NAMES", help="Run these queues only: -q email,reports or -q email -q x"
        ),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", "-c", min=1, max=1000, help="Handlers at a time, for each queue.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, max=256, help="Worker processes, under one small parent.")
    ] = None,
    max_jobs: Annotated[
        int | None, typer.Option("--max-jobs", min=1, help="Start the process anew after so many jobs.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option("--max-memory", metavar="SIZE", help="... when it holds more memory: 512MB, 1.5G")
    ] = None,
    max_age: Annotated[
        str | None, typer.Option("--max-age", metavar="TIME", help="... after so much time: 90, 15m, 12h, 1d")
    ] = None,
    burst: Annotated[bool, typer.Option("--burst", help="Stop as soon as nothing is due.")] = False,
    app: Annotated[str | None, typer.Option("--app", metavar="MODULE:NAME", help="Your app: mypkg.jobs:app")] = None,
    with_api: Annotated[
        bool, typer.Option("--with-api", help="Serve the HTTP API and the dashboard too, see `queue-worker api`.")
    ] = False,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Port of the API.")] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address of the API.")] = None,
    migrate: Annotated[bool, typer.Option("--migrate", help="Apply missing migrations first.")] = False,
    reload: Annotated[
        bool, typer.Option("--reload", help="For development: start anew whenever a file of the app changes.")
    ] = False,
    child: Annotated[str | None, typer.Option("--child", hidden=True)] = None,
) -> int:
    """Run the worker until SIGTERM or SIGINT."""
    # Here, because no other command needs the engine.
    from queue_worker.cli import parents

    given: dict[str, Any] = {
        "only": ",".join(queues) if queues else None,
        "concurrency": concurrency,
        "processes": processes,
        "max_jobs": max_jobs,
        "max_memory": max_memory,
        "max_age": max_age,
        "burst": burst or None,
        "app": app,
        "migrate": migrate or None,
        "with_api": with_api or None,
        "port": port,
        "api_host": host,
        "reload": reload or None,
        "log_level": "DEBUG" if common.common.verbose else None,
    }
    settings = common.settings(**given)
    settings.require_database()
    if settings.processes > 1 or settings.max_memory is not None:
        require_posix("--processes" if settings.processes > 1 else "--max-memory")
    if child is None and settings.reload:
        return parents.run_reload(settings)
    if child is None and settings.processes > 1:
        parents.become_parent(settings)
    if settings.reload and not settings.is_set("grace_seconds"):
        settings = common.settings(**given, grace_seconds=min(_RELOAD_GRACE, settings.grace_seconds))
    return _work(settings, child)


def _work(settings: Settings, child: str | None) -> int:
    from queue_worker.cli import parents

    number, _, descriptor = (child or "").partition(":")
    host = parents.host_of(settings, int(descriptor) if descriptor.isdigit() else None)
    if isinstance(sys.stdout, TextIOWrapper):
        # What handlers print must reach a log file when it is printed, not when the buffer is full; and as whole lines,
        # also where PYTHONUNBUFFERED would mix the pieces of two threads.
        sys.stdout.reconfigure(line_buffering=True, write_through=False)
    log.configure(settings.log_level, settings.log_format)
    if number not in ("", "0"):
        logger.configure(extra={"process": int(number)})
    detach = log_events.attach()
    for line in settings.warnings if number in ("", "0", "1") else ():
        logger.warning("{}", line)
    if settings.otel:
        tracing.enable(export=True)
    try:
        code = _run(settings, host)
    except (QueueWorkerError, KeyboardInterrupt):
        raise
    except Exception:
        logger.opt(exception=True).critical("the worker crashed")
        code = FAILED
    tracing.disable()
    detach()
    return code


def _run(settings: Settings, host: ProcessHost) -> int:
    from queue_worker.service import Service

    app = load_app(settings.app)
    service = Service(settings, app, host.host)
    if settings.with_api:
        from queue_worker.cli.api import beside

        service.beside["api"] = beside(settings, app, service)
    for line in settings.check_queues(processor.queue for processor in service.processors):
        logger.warning("{}", line)
    # While it runs, the service handles these two itself. What comes after its end finds this: another Ctrl+C
    # must not turn a clean exit into a crash.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    host.working()
    return service.run()
