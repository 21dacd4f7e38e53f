"""A worker inside any program: started in threads, ready when the block begins, stopped gracefully when it ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from queue_worker import events, log_events, tracing
from queue_worker.config import Settings, load_settings
from queue_worker.durations import Duration, seconds
from queue_worker.errors import QueueWorkerError, TransportUnavailable, UsageError
from queue_worker.log import register_secret
from queue_worker.processor import App
from queue_worker.service import Service
from queue_worker.source import Source

_CRASHED = 1
_LOOK = 0.05
"""Pause between two looks at whether the worker is ready, in seconds."""


class Running:
    """What `App.running()` returns: a context manager, for `with` and for `async with`.

    The worker lives in threads of this process: signals, the garbage collector and the log's handlers stay as the
    program has them. Entering waits until the worker is ready and raises what keeps it from starting: ConfigError, or
    TransportUnavailable after `ready_timeout` without a database. Leaving stops it as the first signal stops
    `queue-worker start`, and raises QueueWorkerError if it had crashed.
    """

    def __init__(
        self,
        app: App,
        source: Source,
        overrides: Mapping[str, Any],
        env_file: Path | None,
        ready_timeout: Duration,
    ) -> None:
        self._app = app
        self._source = source
        self._overrides = overrides
        self._env_file = env_file
        self._patience = seconds(ready_timeout, "ready_timeout")
        self._undo = ExitStack()
        self._service: Service | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._code: int | None = None

    @property
    def alive(self) -> bool:
        """Whether the worker runs; False also after it gave up by itself (a crash, too many stuck handlers)."""
        return self._thread is not None and self._thread.is_alive()

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise UsageError("running() was entered before: call app.running() again for another run")
        settings = load_settings(self._overrides, self._env_file)
        for secret in settings.secret_values():
            register_secret(secret)
        if settings.otel:
            tracing.enable(export=True)
        self._undo.callback(log_events.attach())
        try:
            self._start(settings)
            self._undo.enter_context(self._source.using(settings))
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._undo.close()
        # What the block itself raised comes first.
        if error is None:
            self._raise_crash()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def wait(self, timeout: Duration | None = None) -> bool:
        """Wait until the worker has ended by itself; False when it still runs after `timeout` (None: no limit)."""
        if self._thread is not None:
            self._thread.join(None if timeout is None else seconds(timeout, "timeout"))
        return not self.alive

    def stop(self) -> None:
        """Stop the worker: unstarted messages go back, running handlers get the grace; returns when it has ended."""
        if self._service is None or self._thread is None:
            return
        self._service.stop()
        try:
            self._thread.join()
        except KeyboardInterrupt:
            # The second Ctrl+C of an impatient person, as `queue-worker start` takes it: now.
            self._service.stop()
            self._thread.join()
            raise

    def _start(self, settings: Settings) -> None:
        self._service = service = Service(settings, self._app)
        reasons: list[str] = []
        end = events.subscribe("database.lost", lambda _name, fields: reasons.append(str(fields.get("error"))))
        self._thread = threading.Thread(target=self._run, args=(service,), name="queue_worker", daemon=True)
        self._thread.start()
        limit = time.monotonic() + self._patience
        try:
            while not service.ready.wait(_LOOK):
                if not self.alive:
                    self._raise_crash()
                    raise QueueWorkerError("the worker ended before it was ready")
                if time.monotonic() > limit:
                    why = reasons[-1] if reasons else "the database did not answer"
                    raise TransportUnavailable(f"the worker was not ready within {self._patience:g} s: {why}")
        except BaseException:
            self.stop()
            raise
        finally:
            end()

    def _run(self, service: Service) -> None:
        try:
            self._code = service.run(guest=True)
        except BaseException as error:
            self._error = error

    def _raise_crash(self) -> None:
        if self._error is not None:
            raise self._error
        if self._code == _CRASHED:
            raise QueueWorkerError("the worker crashed: a thread of it died, see the log")
