"""`queue-worker api`: the HTTP API and the dashboard, alone; and beside a worker for `start --with-api`."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Annotated

import typer
from loguru import logger

from queue_worker import log, tracing
from queue_worker.cli import common
from queue_worker.cli.application import load_app
from queue_worker.errors import ConfigError
from queue_worker.manager import Manager

if TYPE_CHECKING:
    from queue_worker.api.server import ApiServer
    from queue_worker.config import Settings
    from queue_worker.processor import App
    from queue_worker.service import Service


def register(app: typer.Typer) -> None:
    """Add the command."""
    common.command(app, "api")(api)


def api(
    host: Annotated[str | None, typer.Option("--host", help="Address; another than 127.0.0.1 needs a token.")] = None,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Port; 3001 if not given.")] = None,
    app: Annotated[str | None, typer.Option("--app", metavar="MODULE:NAME", help="Your app: mypkg.jobs:app")] = None,
) -> int:
    """Serve the HTTP API and the dashboard."""
    settings = common.settings(api_host=host, port=port, app=app)
    settings.require_database()
    log.configure("DEBUG" if common.common.verbose else settings.log_level, settings.log_format)
    for line in settings.warnings:
        logger.warning("{}", line)
    server = _server(settings, load_app(settings.app), manager=Manager())
    _announce(server, settings)
    # The server handles these two while it runs, and raises them once more at its end, which must be a clean exit. One
    # that comes before it runs must not be lost.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    if settings.otel:
        tracing.enable(export=True)
    server.run()
    tracing.disable()
    return 0


def beside(settings: Settings, app: App, service: Service) -> ApiServer:
    """Return the server for a thread of a worker; raises ConfigError for its address."""
    server = _server(settings, app, service)
    _announce(server, settings)
    return server


def _server(settings: Settings, app: App, service: Service | None = None, manager: Manager | None = None) -> ApiServer:
    try:
        from queue_worker.api.server import ApiServer
    except ImportError as error:
        raise ConfigError(f"the API needs an extra ({error.name}): pip install 'queue-worker[api]'") from None
    healthy = None if service is None else lambda: service.healthy
    return ApiServer(settings, app, healthy=healthy, manager=manager)


def _announce(server: ApiServer, settings: Settings) -> None:
    logger.info("API and dashboard at {}", server.url)
    if settings.api_token is None and settings.api_read_token is None:
        logger.info("no token is set (QUEUE_WORKER_API_TOKEN): whoever is on this machine may use it, nobody else")
