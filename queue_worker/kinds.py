"""Which executor runs which handler."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any

from queue_worker.async_executor import AsyncExecutor
from queue_worker.batching import BatchExecutor
from queue_worker.child_protocol import Setup, reference_of
from queue_worker.config import QueueOptions, Settings
from queue_worker.executor import Executor
from queue_worker.isolation import ProcessExecutor
from queue_worker.loop_thread import LoopThread
from queue_worker.platforms import require_posix
from queue_worker.processor import JobContext, Processor
from queue_worker.retry import RetryPolicy
from queue_worker.threads import ThreadExecutor
from queue_worker.transport import Database


class Kinds:
    """Makes the executors of one process; `stop` ends what they share."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._loop = LoopThread()

    def executor(
        self,
        processor: Processor,
        policy: RetryPolicy,
        context: JobContext,
        options: QueueOptions,
        wake: Callable[[], None],
    ) -> Executor:
        """Return the executor of `processor`: a thread, batch, async or process one."""
        common: dict[str, Any] = {
            "concurrency": options.concurrency,
            "settle_mark": max(1, options.batch_size // 2),
            "wake": wake,
            "results": options.results,
        }
        if processor.isolation == "process":
            require_posix(f'isolation="process" (queue {processor.queue})')
            return ProcessExecutor(processor, policy, context, setup=self._setup(processor, options), **common)
        if processor.is_async:
            return AsyncExecutor(processor, policy, context, loop=self._loop, batch_size=options.batch_size, **common)
        if processor.batch:
            return BatchExecutor(processor, policy, context, batch_size=options.batch_size, **common)
        return ThreadExecutor(processor, policy, context, **common)

    def _setup(self, processor: Processor, options: QueueOptions) -> Setup:
        return Setup(
            queue=processor.queue,
            handler=reference_of(processor),
            options=_portable(processor.options),
            address=self._database.address(),
            on_success=options.on_success,
            kept=options.results,
            log_level=self._settings.log_level,
            log_format=self._settings.log_format,
        )

    def stop(self) -> None:
        """End the event loop, if one was started."""
        self._loop.stop()


def check(processor: Processor) -> None:
    """Raise ConfigError for a handler that cannot run as its processor says."""
    if processor.isolation == "process":
        reference_of(processor)


def _portable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `options` that another process can be given; a function, say, stays here and is used here."""
    return {name: value for name, value in options.items() if _crosses(value)}


def _crosses(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True
