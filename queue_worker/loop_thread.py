"""The one event loop of a process, on a thread of its own; `async def` handlers of all queues share it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_LAST_SECONDS = 1.0
"""How long tasks that are cancelled at the end may take to clean up, in seconds."""


class LoopThread:
    """Starts its thread on first use; `stop` ends it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def ident(self) -> int | None:
        """The identifier of the thread; None before the first use."""
        return self._thread.ident if self._thread is not None else None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, which runs."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                # A daemon: a handler that blocks the loop for ever must not keep the process from ending.
                self._thread = threading.Thread(target=self._run, args=(self._loop,), name="async", daemon=True)
                self._thread.start()
            return self._loop

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call `function` on the loop soon, from any thread; nothing happens where the loop has ended."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(function, *arguments)

    def stop(self, seconds: float = 3.0) -> None:
        """Cancel what still runs and end the thread; waits up to `seconds` for it."""
        thread, loop = self._thread, self._loop
        if thread is not None and loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(loop.stop)
            thread.join(seconds)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        # For asyncio.to_thread. Our own, because the loop would wait for the threads of its default one without end.
        pool = ThreadPoolExecutor(thread_name_prefix="async-to-thread")
        loop.set_default_executor(pool)
        try:
            loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks, timeout=_LAST_SECONDS))
            loop.run_until_complete(loop.shutdown_asyncgens())
            pool.shutdown(wait=False, cancel_futures=True)
            asyncio.set_event_loop(None)
            loop.close()
