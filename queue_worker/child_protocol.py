"""What a worker and the child process of a handler say to each other, as pickled tuples over a socket.

To the child: `Setup` once, then `("run", Task)` and `("answer", value)`. From the child: `("ready",)`, then for each
task any number of `("progress", Progress)`, `("note", fields)`, `("settled",)`, `("ask", name, argument)`, and last
`("done", result)` or `("failed", Failure)`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from queue_worker import errors
from queue_worker.errors import ConfigError
from queue_worker.message import Message, Release
from queue_worker.processor import Handler, Processor
from queue_worker.retry import ORIGIN_KINDS
from queue_worker.transport import Address


@dataclass(frozen=True, slots=True)
class Setup:
    """All that a child needs to know before its first task.

    `handler` is (module, qualified name); `options` those of the decorator that another process can be given; `kept`:
    whether results are.
    """

    queue: str
    handler: tuple[str, str]
    options: Mapping[str, Any]
    address: Address
    on_success: str
    kept: bool
    log_level: str
    log_format: str


@dataclass(frozen=True, slots=True)
class Task:
    """One run: the message, how often it may run, and its time limit in seconds."""

    message: Message
    max_attempts: int
    timeout: float


@dataclass(frozen=True, slots=True)
class Failure:
    """What a handler raised, as far as it can cross to another process.

    `name` is the class, `kinds` the names of it and its bases (`retry.kind_name`), `text` what is stored of it;
    `fields` those of our own exceptions that steer. `release`: it costs no attempt, as the child has found.
    """

    name: str
    text: str
    fields: Mapping[str, Any] | None = None
    release: Release | None = None
    kinds: tuple[str, ...] = ()

    def exception(self) -> BaseException:
        """Return an exception that is judged and stored like the original."""
        match self.name, self.fields:
            case ("Retry" | "Unavailable") as name, {"reason": reason, "delay": delay}:
                steering: BaseException = getattr(errors, name)(reason, delay=delay)
                return steering
            case "Reject", {"reason": reason}:
                return errors.Reject(reason)
            case "CallRefused", {"sqlstate": state}:
                return errors.CallRefused(self.text, state)
            case ("LeaseLost" | "InvalidPayload" | "UnsupportedVersion" | "TransportUnavailable") as name, {}:
                ours: BaseException = getattr(errors, name)(self.text)
                return ours
        if self.release is not None and self.release.pause is not None:
            return errors.Unavailable(self.release.reason, delay=self.release.pause)
        # A class of its own with the original's name: in rows and logs it reads as if it were raised here.
        made: BaseException = type(self.name, (ForeignError,), {ORIGIN_KINDS: self.kinds})(self.text)
        return made


class ForeignError(errors.QueueWorkerError):
    """Base of what stands for an exception of a handler in another process; `str()` has its last frames."""


def reference_of(processor: Processor) -> tuple[str, str]:
    """Return (module, qualified name) under which another process finds the handler.

    Raises ConfigError where it would find none or another one.
    """
    handler = processor.handler
    module, name = getattr(handler, "__module__", None), getattr(handler, "__qualname__", "")
    where = f"processor {processor.queue!r}: isolation='process' needs a handler that can be imported"
    if module == "__main__":
        raise ConfigError(f"{where}; {name} is in the script that was started: move it into a module")
    if not module or "<" in name:
        raise ConfigError(f"{where}; {name or handler!r} is not defined at the top of a module")
    try:
        found = load_handler(module, name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}; {module}.{name} cannot be: {error}") from None
    if found is not handler:
        raise ConfigError(f"{where}; {module}.{name} is something else")
    return module, name


def load_handler(module: str, name: str) -> Handler:
    """Import a handler; raises ImportError or AttributeError."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    # The decorator may have put something in the function's place that knows it.
    if not inspect.isroutine(found):
        found = getattr(found, "handler", found)
    handler: Handler = inspect.unwrap(found)
    return handler
