"""Serves the API: alone, or on a thread beside a worker."""

from __future__ import annotations

import asyncio
import socket
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from queue_worker.api.application import create_api
from queue_worker.api.guard import is_loopback
from queue_worker.errors import ConfigError
from queue_worker.manager import Manager

if TYPE_CHECKING:
    from collections.abc import Callable

    from queue_worker.config import Settings
    from queue_worker.processor import App

HEADER_SECONDS = 10.0
"""How long the head of a request may take to arrive, and the rest of a body that nobody reads."""

WRITE_SECONDS = 30.0
"""How long a client may leave what is sent to it unread."""

_AT_ONCE = 200
_GRACE = 5
_ALIVE_TICKS = 50


class _Impatient(H11Protocol):
    """Closes a connection that takes a place and does nothing; uvicorn waits for each of these without end.

    A request that does not begin, a body that goes on after its answer, and an answer that nobody reads.
    """

    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _waits(self) -> bool:
        return self.conn.their_state is h11.IDLE or (
            self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE
        )

    def _watch(self) -> None:
        waiting = self._waits()
        if waiting and self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._give_up)
        elif not waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self._waits():
            self.transport.close()


class _Server(uvicorn.Server):
    """Tells the process manager how it is, and open streams that a signal ends it; they would hold it up."""

    closing: threading.Event
    manager: Manager

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Not after a stop: PM2 would take what it is stopping for running, and start it again.
        if self.started and not self.should_exit:
            self.manager.ready()

    async def on_tick(self, counter: int) -> bool:
        # Ten ticks a second, on the loop that answers requests: a loop that is stuck feeds no watchdog.
        if counter % _ALIVE_TICKS == 0:
            self.manager.alive()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.closing.set()
        self.manager.stopping()
        super().handle_exit(sig, frame)


def check_address(settings: Settings) -> None:
    """Raise ConfigError where the API would be open to others without a token."""
    if settings.api_token is None and settings.api_read_token is None and not is_loopback(settings.api_host):
        raise ConfigError(
            f"--host {settings.api_host} without a token would open the queues to everybody: set"
            " QUEUE_WORKER_API_TOKEN, or leave the host at 127.0.0.1"
        )


class ApiServer:
    """The API on a port: a Side of the supervisor, or `run` on the main thread.

    `manager`: who is told that it is ready and alive; nobody beside a worker, which speaks for the process. Raises
    ConfigError for an address that is taken or not allowed.
    """

    def __init__(
        self,
        settings: Settings,
        app: App | None = None,
        *,
        healthy: Callable[[], bool] | None = None,
        manager: Manager | None = None,
    ) -> None:
        check_address(settings)
        self.application = create_api(app, settings, healthy=healthy)
        self._socket = _bind(settings.api_host, settings.port)
        self._server = _Server(
            uvicorn.Config(
                self.application,
                http=_Impatient,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=_AT_ONCE,
                timeout_keep_alive=5,
                # An open stream of events ends with the server, not the server with it.
                timeout_graceful_shutdown=_GRACE,
            )
        )
        self._server.closing = self.application.state.queue_worker.closing
        self._server.manager = manager or Manager({})

    @property
    def url(self) -> str:
        """Where it is served."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self) -> None:
        """Serve until `stop`, or on the main thread until SIGTERM or SIGINT."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def stop(self) -> None:
        """End `run` soon: open requests may finish."""
        self._server.closing.set()
        self._server.should_exit = True


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host.strip("[]"), port))
        made.listen(256)
    except OSError as error:
        made.close()
        raise ConfigError(
            f"the API cannot listen on {host}, port {port}: {error.strerror or error}; choose another with PORT"
        ) from None
    return made
