"""`queue-worker start`: runs the worker in this process."""

from __future__ import annotations

import signal
import sys
from io import TextIOWrapper
from typing import Annotated

import typer
from loguru import logger

from queue_worker import log, log_events
from queue_worker.cli import common
from queue_worker.cli.application import load_app
from queue_worker.cli.failure import FAILED
from queue_worker.config import Settings
from queue_worker.errors import QueueWorkerError


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
    burst: Annotated[bool, typer.Option("--burst", help="Stop as soon as nothing is due.")] = False,
    app: Annotated[str | None, typer.Option("--app", metavar="MODULE:NAME", help="Your app: mypkg.jobs:app")] = None,
    migrate: Annotated[bool, typer.Option("--migrate", help="Apply missing migrations first.")] = False,
) -> int:
    """Run the worker until SIGTERM or SIGINT."""
    settings = common.settings(
        only=",".join(queues) if queues else None,
        concurrency=concurrency,
        burst=burst or None,
        app=app,
        migrate=migrate or None,
        log_level="DEBUG" if common.common.verbose else None,
    )
    settings.require_database()
    if isinstance(sys.stdout, TextIOWrapper):
        # What handlers print must reach a log file when it is printed, not when the buffer is full; and as whole lines,
        # also where PYTHONUNBUFFERED would mix the pieces of two threads.
        sys.stdout.reconfigure(line_buffering=True, write_through=False)
    log.configure(settings.log_level, settings.log_format)
    detach = log_events.attach()
    for line in settings.warnings:
        logger.warning("{}", line)
    try:
        code = _run(settings)
    except (QueueWorkerError, KeyboardInterrupt):
        raise
    except Exception:
        logger.opt(exception=True).critical("the worker crashed")
        code = FAILED
    detach()
    return code


def _run(settings: Settings) -> int:
    from queue_worker.service import Service

    service = Service(settings, load_app(settings.app))
    for line in settings.check_queues(processor.queue for processor in service.processors):
        logger.warning("{}", line)
    # While it runs, the service handles these two itself. What comes after its end finds this: another Ctrl+C
    # must not turn a clean exit into a crash.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return service.run()
