"""What every request passes before a route sees it: Host, origin, size and time of the body; headers of answers.

Pure ASGI, so that a stream of events is neither buffered nor cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from loguru import logger
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from queue_worker.api.answers import failure

if TYPE_CHECKING:
    from queue_worker.api.access import Access
    from queue_worker.api.backend import Backend
    from queue_worker.processor import App

MAX_BODY = 1024 * 1024
BODY_SECONDS = 15.0
_DRAINED = 16 * MAX_BODY
_LOOPBACK = {"localhost", "127.0.0.1", "[::1]", "::1"}
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
_SAFE = ("GET", "HEAD", "OPTIONS")
_CSP = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'self';"
    " frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "content-security-policy": _CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Parts:
    """What routes need of the API that they belong to: `request.state.queue_worker`."""

    access: Access
    backend: Backend
    app: App
    closing: threading.Event
    """Set when the server stops: streams end."""
    pages: set[object] = field(default_factory=set)
    """Of the live pages that are open, one each."""


class _Refused(Exception):
    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


class Guard:
    """Refuses what no route should see. `hosts`: the names this server goes by; empty: any (a token is set)."""

    def __init__(self, app: ASGIApp, *, parts: Parts, hosts: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._parts = parts
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["queue_worker"] = self._parts
        state["request_id"] = secrets.token_hex(6)
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._dress(message, state["request_id"])
            await send(message)

        request = Request(scope)
        body = _Body(receive)
        try:
            self._check(scope)
            await self._app(scope, body.receive, sending)
        except _Refused as error:
            if not started:
                await body.drain()
                await failure(request, error.status, str(error), {"Connection": "close"})(scope, receive, sending)
        except Exception as error:
            logger.opt(exception=error).error("request {} failed", state["request_id"])
            if not started:
                line = "something went wrong: the log of the server says what"
                await failure(request, 500, line)(scope, receive, sending)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        # A page of another site whose name was made to point at this machine sends its own name (DNS rebinding).
        if self._hosts and _name(host) not in self._hosts:
            raise _Refused(421, "this server does not go by that Host")
        if self._hosts and not _from_this_machine(scope, headers):
            raise _Refused(403, "without a token only this machine is served: set QUEUE_WORKER_API_TOKEN")
        if scope["method"] not in _SAFE:
            site = headers.get("sec-fetch-site")
            origin = headers.get("origin")
            if site not in (None, "same-origin", "none") or (
                site is None and origin is not None and _netloc(origin) != host
            ):
                raise _Refused(403, "the request comes from another site")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:12]) > MAX_BODY:
            raise _Refused(413, f"the body must not be larger than {MAX_BODY} bytes")

    def _dress(self, message: Message, request_id: str) -> None:
        headers = MutableHeaders(scope=message)
        for name, value in _HEADERS.items():
            headers.setdefault(name, value)
        headers.setdefault("cache-control", "no-store")
        headers["x-request-id"] = request_id


class _Body:
    """Counts what arrives, and gives it `BODY_SECONDS`; raises into whoever reads."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._size = 0
        self._end = asyncio.get_running_loop().time() + BODY_SECONDS
        self._complete = False

    async def receive(self) -> Message:
        """See ASGI `receive`."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._end):
                message: Any = await self._receive()
        except TimeoutError:
            raise _Refused(408, f"the body did not arrive within {BODY_SECONDS:g} seconds") from None
        self._size += len(message.get("body", b""))
        if self._size > MAX_BODY:
            raise _Refused(413, f"the body must not be larger than {MAX_BODY} bytes")
        self._complete = not message.get("more_body", False)
        return message  # type: ignore[no-any-return]

    async def drain(self) -> None:
        """Throw away what is still on its way, within bounds: a client cut off while it sends sees no answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._end):
                while not self._complete and self._size <= _DRAINED:
                    message = await self._receive()
                    self._size += len(message.get("body", b""))
                    self._complete = message["type"] != "http.request" or not message.get("more_body", False)


def loopback_hosts() -> frozenset[str]:
    """Return the names under which a browser of this machine reaches a server on loopback."""
    return frozenset(_LOOPBACK)


def is_loopback(host: str) -> bool:
    """Whether a server that binds to `host` is reached from this machine alone."""
    return host in _LOOPBACK or host.startswith("127.")


def _from_this_machine(scope: Scope, headers: Headers) -> bool:
    """Whether a request began on this machine, as far as it shows: a proxy passes on those of others."""
    client = scope.get("client")
    return (not client or is_loopback(client[0])) and not any(name in headers for name in _FORWARDED)


def _netloc(origin: str) -> str | None:
    """Return the host of an Origin with its port; None for what is no URL."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()
