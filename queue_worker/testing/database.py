"""A database for one test, and a worker that drains its queues inside the test."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import to_jsonable_python

from queue_worker import events
from queue_worker.config import load_settings
from queue_worker.errors import Panic, UsageError
from queue_worker.processor import App, Job
from queue_worker.service import Service
from queue_worker.transport.database import PostgresDatabase

_ENDS = {
    "message.done": "done",
    "message.retried": "retried",
    "message.dead": "dead",
    "message.released": "released",
}


class Ended(NamedTuple):
    """What became of one run: `done`, `retried`, `dead` or `released`."""

    queue: str
    msg_id: int
    outcome: str
    attempt: int
    error: str


class QueueDatabase:
    """A fresh database with pgmq and the schema; `url` is for your own connections, `folder` for the worker's files."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._folder = folder

    def send(self, queue: str, payload: Any, **options: Any) -> int:
        """Send a message and return its id; `options` are those of SQL `queue_worker.send`. Makes a missing queue."""
        self.call("queue_worker.create_queue", queue=queue)
        body = to_jsonable_python(payload)
        return int(self.call("queue_worker.send", queue=queue, payload=body, **options)[0]["send"])

    def call(self, function: str, /, **params: Any) -> list[dict[str, Any]]:
        """Call a SQL function and return its rows, for example `call("queue_worker.message", queue="q", msg_id=1)`."""
        database = PostgresDatabase(lambda: self.url, pooler=False)
        try:
            return database.transport().call(function, params).dicts()
        finally:
            database.close()

    def work(
        self, app: App, *queues: str, raising: bool = False, seconds: float = 60.0, **settings: Any
    ) -> list[Ended]:
        """Run the app's real worker until nothing is due in `queues` (default: all of the app); returns how runs ended.

        A retry that is due later stays in its queue: with `retry=0` it runs at once. `settings` are those of
        `queue-worker config` by field name or queue option and beat those of the decorator; your environment lies below
        them, your `.env` is not read. `raising` raises what a handler raised first, after the queues are empty. Raises
        AssertionError after `seconds`, and UsageError or ConfigError for a wrong setting.
        """
        errors: list[BaseException] = []
        service = Service(self._settings(app, queues, settings), _watched(app, errors))
        with _ends(set(service.options)) as ended:
            _run(service, seconds)
        if raising and errors:
            raise errors[0]
        return ended

    def _settings(self, app: App, queues: Sequence[str], settings: Mapping[str, Any]) -> Any:
        if not queues and not app.processors:
            raise UsageError("the app has no processors: name the queues to work on")
        empty = self._folder / "empty.env"
        empty.touch(mode=0o600)
        ours = {
            "database_url": self.url,
            "db_host": "",
            "embedded": False,
            "pooler": "no",
            "notify": False,
            "migrate": False,
            "burst": True,
            "only": queues or tuple(app.processors),
            "state_dir": self._folder,
            "cycle_seconds": 0.05,
            "grace_seconds": 5,
        }
        return load_settings({**ours, **settings}, empty)


def _watched(app: App, errors: list[BaseException]) -> App:
    """Return a copy of `app` whose first callback notes the errors."""

    def note(job: Job[Any], error: Exception) -> None:
        errors.append(error.__cause__ if isinstance(error, Panic) and error.__cause__ else error)

    copy = App(builtins=app.builtins)
    copy.on_error(note)
    for callback in app.error_callbacks:
        copy.on_error(callback)
    for processor in app.processors.values():
        copy.add(dataclasses.replace(processor))
    return copy


@contextmanager
def _ends(queues: set[str]) -> Iterator[list[Ended]]:
    ended: list[Ended] = []

    def note(name: str, fields: dict[str, Any]) -> None:
        if fields["queue"] in queues:
            error = str(fields.get("error", ""))
            ended.append(Ended(fields["queue"], fields["msg_id"], _ENDS[name], fields["attempt"], error))

    stops = [events.subscribe(name, note) for name in _ENDS]
    try:
        yield ended
    finally:
        for stop in stops:
            stop()


def _run(service: Service, seconds: float) -> None:
    raised: list[BaseException] = []

    def work() -> None:
        try:
            service.run()
        except BaseException as error:
            raised.append(error)

    # Not in this thread: there the worker would take Ctrl+C for a request to stop, and the tests would go on.
    thread = threading.Thread(target=work, name="queue_db.work", daemon=True)
    thread.start()
    try:
        thread.join(seconds)
        late = thread.is_alive()
    finally:
        service.stop()
        thread.join()
    if raised:
        raise raised[0]
    if late:
        raise AssertionError(f"the queues were not empty after {seconds:g} s")
