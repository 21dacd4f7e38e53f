"""The composition root: settings and an app become connections, loops and threads."""

from __future__ import annotations

import gc
import os
import secrets
import socket
import threading
from collections.abc import Mapping
from typing import Any

from queue_worker import events
from queue_worker._version import __version__
from queue_worker.alerts import Alerts
from queue_worker.broker import Broker, DatabaseContext
from queue_worker.builtin import builtin_processors
from queue_worker.chores import Housekeeper
from queue_worker.config import Settings
from queue_worker.errors import CallRefused, ConfigError, TransportUnavailable
from queue_worker.health import HealthFile
from queue_worker.host import Host
from queue_worker.kinds import Kinds, check
from queue_worker.lease import LeaseKeeper
from queue_worker.listening import Listening, Sleeper
from queue_worker.opening import open_database
from queue_worker.processor import App, Job, Processor
from queue_worker.retry import RetryPolicy
from queue_worker.schedule import Scheduler
from queue_worker.startup import prepare
from queue_worker.supervisor import Side, Supervisor
from queue_worker.suspects import SuspectGate
from queue_worker.timings import Timings
from queue_worker.transport import Listener
from queue_worker.upkeep import queue_chores, shared_chores
from queue_worker.worker import QueueWorker


def processors_of(settings: Settings, app: App) -> list[Processor]:
    """Return the processors to run: the app's, and the built-in ones it does not replace; raises ConfigError."""
    found = dict(app.processors)
    wanted = settings.only
    for queue, processor in builtin_processors(settings, skip=found, only=wanted) if app.builtins or wanted else ():
        found.setdefault(queue, processor)
    if wanted:
        unknown = [queue for queue in wanted if queue not in found]
        if unknown:
            known = ", ".join(sorted(found)) or "none"
            raise ConfigError(f"no processor for queue {unknown[0]!r}; processors here: {known}")
        found = {queue: found[queue] for queue in wanted}
    if not found:
        raise ConfigError("there is nothing to run: the app has no processors, and built-in ones are switched off")
    for processor in found.values():
        processor.error_callbacks = app.error_callbacks
    return list(found.values())


class Service:
    """All of one worker process.

    `run` blocks until a stop is asked for (signals, or `stop` from another thread) and returns the exit code.
    `host` is what only a process of its own has; a service inside another program does without.
    """

    def __init__(self, settings: Settings, app: App | None = None, host: Host | None = None) -> None:
        self.settings = settings
        self.database = open_database(settings, look=True)
        app = app or App()
        self.processors = processors_of(settings, app)
        for one in self.processors:
            check(one)
        self._schedules = list(app.schedules.values())
        self.options = {one.queue: settings.options_for(one.queue, one.options) for one in self.processors}
        self.worker_id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self.workers: list[QueueWorker] = []
        self._kinds = Kinds(settings, self.database)
        self.ready = threading.Event()
        self._health = HealthFile(settings.state_dir)
        self._host = host or Host()
        self._signals = self._host.signals
        self._supervisor: Supervisor | None = None
        self._timings = Timings()
        self.beside: dict[str, Side] = {}
        """More to run on threads of its own, by name; put in before `run`."""
        self._listener = self._listen()
        self._gate = SuspectGate(lambda: all(not worker.held for worker in self.workers), self._wake_all)

    def _listen(self) -> Listener | None:
        if not self.settings.notify:
            return None
        cycle = min(one.cycle_seconds for one in self.options.values())
        names = sorted(self.options)
        if self._schedules_run:
            names.append(Scheduler.queue)
        return self.database.listener(names, cycle)

    @property
    def _schedules_run(self) -> bool:
        return self.settings.scheduler and not self.settings.burst

    @property
    def healthy(self) -> bool:
        """Whether every loop is alive and turning; False before the first has begun."""
        return self._supervisor is not None and self._supervisor.healthy

    def stop(self) -> None:
        """Ask for a stop, as the first signal does."""
        self._signals.request()

    def run(self, *, guest: bool = False) -> int:
        """Prepare the database, run, stop; returns the exit code. Raises ConfigError before anything is claimed.

        `guest`: inside another program, whose process is left as it is; then call it on a thread of its own.
        """
        try:
            with self._signals.installed():
                with self.database.watched(self.settings.call_timeout_seconds):
                    ready = self._prepare()
                if not ready:
                    return 0
                self.workers = [self._worker(processor) for processor in self.processors]
                supervisor = self._supervise()
                self._timings.begin((worker.queue, worker.durations) for worker in self.workers)
                self._host.recycling.begin()
                self._announce()
                if not guest:
                    # A batch of messages sets off full collections, which would walk every imported module: 20 ms a
                    # batch.
                    gc.collect()
                    gc.freeze()
                self.ready.set()
                return supervisor.run()
        finally:
            if not guest:
                gc.unfreeze()
            self._host.recycling.end()
            self._close()

    # ---------------------------------------------------------------------------------------------- before the loops

    def _prepare(self) -> bool:
        return prepare(
            self.database,
            {processor.queue: processor.ordered for processor in self.processors},
            migrating=self.settings.migrate,
            ending=lambda: self._signals.count > 0,
            pause=self._signals.arrived.wait,
            waiting=self._wait,
        )

    def _wait(self) -> None:
        self._health.report(True, waiting="database")
        self._host.manager.waiting("waiting for the database")

    # ---------------------------------------------------------------------------------------------- the parts

    def _worker(self, processor: Processor) -> QueueWorker:
        options = self.options[processor.queue]
        broker = Broker(
            self.database.transport(receipts=True),
            processor.queue,
            worker=self.worker_id,
            lease_seconds=options.lease_seconds,
            on_success=options.on_success,
            max_lost=options.max_lost,
        )
        wake = threading.Event()
        policy = RetryPolicy.from_options(options)
        context = DatabaseContext(self.database.pool, options.on_success, policy.timeout_for, self._cancelled)
        executor = self._kinds.executor(processor, policy, context, options, wake.set)
        return QueueWorker(broker, executor, options, self._gate, wake)

    def _cancelled(self, job: Job[Any]) -> bool:
        for worker in self.workers:
            if worker.queue == job.queue:
                run = worker.held.get(job.msg_id)
                return run is None or run.lost or run.outcome is not None or run.job is not job
        return True

    def _supervise(self) -> Supervisor:
        keeper = LeaseKeeper(
            self.database.transport(receipts=True),
            self.workers,
            self._heartbeat,
            hears_cancels=self._listener is not None and self._listener.hears_cancels,
            timings=self._timings,
        )
        side: dict[str, Side] = {
            "housekeeper": Housekeeper(
                self.database.transport(),
                [chore for queue, options in self.options.items() for chore in queue_chores(queue, options)]
                + shared_chores(),
            )
        }
        sleepers: list[Sleeper] = [*self.workers]
        if self._schedules_run:
            scheduler = Scheduler(self.database.transport(), self._schedules)
            side["scheduler"] = scheduler
            sleepers.append(scheduler)
        if self.settings.alert_check_seconds and not self.settings.burst:
            side["alerts"] = Alerts(self.database.transport(), self.settings)
        if self._listener is not None:
            side["listener"] = Listening(self._listener, sleepers, keeper.look)
        side |= self.beside
        supervisor = Supervisor(
            self.workers,
            keeper,
            signals=self._signals,
            grace=self.settings.grace_seconds,
            cut_stuck=self._cut_stuck,
            report=self._report,
            side=side,
            stopping=self._host.manager.stopping,
            recycle=self._host.recycling.due,
            burst=self.settings.burst,
        )
        self._supervisor = supervisor
        return supervisor

    def _report(self, healthy: bool) -> None:
        self._health.report(healthy, queues=[one.queue for one in self.processors])
        if healthy:
            self._host.manager.alive()

    def _wake_all(self) -> None:
        for worker in self.workers:
            worker.wake()

    def _cut_stuck(self) -> None:
        threads = {thread for worker in self.workers for thread in worker.executor.stuck_threads}
        self.database.cut_stuck(self.settings.call_timeout_seconds, threads)

    def _heartbeat(self) -> Mapping[str, Any]:
        return {
            "worker": self.worker_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "queues": [worker.queue for worker in self.workers],
            "slots": sum(worker.options.concurrency for worker in self.workers),
            "busy": sum(worker.busy for worker in self.workers),
        }

    def _announce(self) -> None:
        lines = [
            {
                "queue": one.queue,
                "cycle_seconds": self.options[one.queue].cycle_seconds,
                "batch_size": self.options[one.queue].batch_size,
                "concurrency": self.options[one.queue].concurrency,
                "series": RetryPolicy.from_options(self.options[one.queue]).series(),
            }
            for one in self.processors
        ]
        events.emit(
            "worker.ready",
            version=__version__,
            transport=self.database.description,
            worker=self.worker_id,
            queues=lines,
        )
        self._report(True)
        self._host.manager.ready()

    def _close(self) -> None:
        self._timings.end()
        self._kinds.stop()
        for processor in self.processors:
            if processor.close is not None:
                processor.close()
        sign_off = self.database.transport()
        try:
            if self.workers:
                with self.database.watched(2.0):
                    self._timings.flush(sign_off)
                    sign_off.call("queue_worker.sign_off", {"worker": self.worker_id})
        except (TransportUnavailable, CallRefused):
            # The row ages and is pruned; nothing depends on it.
            pass
        self.database.close()
        if self._listener is not None:
            self._listener.close()
        self._health.remove()
