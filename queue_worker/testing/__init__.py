"""For the tests of whoever writes processors: one handler without a database, or a real worker on a real Postgres.

`run` calls a handler with one message and tells what the worker would do with it. `queue_worker.testing.fixtures` is a
pytest plugin with an embedded Postgres of its own.
"""

from queue_worker.message import Ack, DeadLetter, Release, Retry
from queue_worker.testing.recorder import Called, Executed, Sent
from queue_worker.testing.runner import Result, run

__all__ = ["Ack", "Called", "DeadLetter", "Executed", "Release", "Result", "Retry", "Sent", "run"]
