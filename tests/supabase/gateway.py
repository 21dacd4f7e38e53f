"""What stands before PostgREST at Supabase: the prefix /rest/v1, keys that are no JWT, and what can go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
from aiohttp import web

SECRET_KEY = "sb_secret_of_the_tests"

Fault = Callable[["Gateway", web.Request, bytes], Any]


class Gateway:
    """A reverse proxy on 127.0.0.1, in a thread of its own.

    `target` is the port behind it; `keys` gives the JWT for keys that are none. `calls` counts by called function.
    """

    def __init__(self, target: int, keys: dict[str, str] | None = None) -> None:
        self.target = target
        self.keys = keys or {}
        self.calls: Counter[str] = Counter()
        self.requests = 0
        self.dropped = 0
        self.url = ""
        self._faults: list[tuple[str, str, Any]] = []
        self._hole = False
        self._every = 0
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="gateway")
        self._thread.start()
        assert self._ready.wait(10)

    # ------------------------------------------------------------------------------------------------- faults

    def drop_reply(self, function: str) -> None:
        """Let the next call of `function` (send, ...) through, and cut the connection instead of answering."""
        self._faults.append((function, "drop", None))

    def answer(self, function: str, status: int, body: str = "", headers: dict[str, str] | None = None) -> None:
        """Answer the next call of `function` (empty: of any) with this, and do not pass it on."""
        self._faults.append((function, "answer", (status, body, headers or {})))

    def drop_every(self, count: int) -> None:
        """Let calls through and cut the connection instead of answering, for one of `count` calls; 0: none."""
        self._every = count

    def black_hole(self, on: bool) -> None:
        """Accept everything and answer nothing, from now on."""
        self._hole = on

    # ------------------------------------------------------------------------------------------------- serving

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(auto_decompress=False, connector=connector) as self._session:
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests += 1
        if self._hole:
            await asyncio.Event().wait()
        function = self._function(request, body)
        self.calls[function] += 1
        fault = self._take(function)
        if fault and fault[0] == "answer":
            status, text, headers = fault[1]
            return web.Response(status=status, text=text, headers=headers)
        path = request.match_info["path"]
        if not path.startswith("rest/v1/"):
            return web.Response(status=404, text='{"message":"no Route matched with those values"}')
        response = await self._pass_on(request, body, path.removeprefix("rest/v1/"))
        if fault or self._hole or (self._every and self.requests % self._every == 0):
            assert request.transport is not None
            self.dropped += 1
            request.transport.abort()
        return response

    async def _pass_on(self, request: web.Request, body: bytes, path: str) -> web.Response:
        headers = {
            k: v for k, v in request.headers.items() if k.lower() not in ("host", "content-length", "connection")
        }
        key = request.headers.get("apikey", "")
        if key in self.keys:
            headers["Authorization"] = f"Bearer {self.keys[key]}"
        url = f"http://127.0.0.1:{self.target}/{path}"
        try:
            async with self._session.request(
                request.method, url, params=request.query, data=body, headers=headers, allow_redirects=False
            ) as answer:
                kept = {k: v for k, v in answer.headers.items() if k.lower() in ("content-type", "content-range")}
                return web.Response(status=answer.status, body=await answer.read(), headers=kept)
        except aiohttp.ClientError:
            # As the real one does while PostgREST is away.
            return web.Response(status=502, text="<html><body>Bad gateway</body></html>", content_type="text/html")

    def _function(self, request: web.Request, body: bytes) -> str:
        name = request.path.rpartition("/")[2]
        marker = b'"function":"queue_worker.'
        compact = body.replace(b'": "', b'":"', 1) if name == "call" else b""
        if name == "call" and marker in compact:
            return compact.split(marker, 1)[1].split(b'"', 1)[0].decode()
        return name

    def _take(self, function: str) -> tuple[str, Any] | None:
        for index, (wanted, kind, detail) in enumerate(self._faults):
            if wanted in ("", function):
                del self._faults[index]
                return kind, detail
        return None

    def close(self) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


@contextlib.contextmanager
def gateway(target: int, keys: dict[str, str] | None = None) -> Iterator[Gateway]:
    """Run a gateway before the port `target` while the block runs."""
    made = Gateway(target, keys)
    try:
        yield made
    finally:
        made.close()
