"""Every exception of queue_worker.

What each means:

    QueueWorkerError
    ├── UsageError             a person's mistake: one clear line, exit code 2
    │   └── QueueNotFound      the queue is not there
    ├── ConfigError            a setting is missing or contradicts another one, exit code 78
    │   └── SchemaError        the database schema is missing, edited, too old or too new, exit code 78
    ├── TransportError
    │   ├── TransportUnavailable   the database cannot be reached: wait and repeat, costs no attempt
    │   └── CallRefused            the database answered with an error (carries its SQLSTATE)
    ├── JobFailed              the message that somebody waits for became a dead letter
    ├── LeaseLost              the message belongs to another worker by now: write nothing
    ├── InvalidPayload         the payload does not fit the processor's model: dead letter at once
    │   └── UnsupportedVersion     the payload says a version that the processor does not know
    ├── TimeLimit              the handler ran longer than it may (also a TimeoutError)
    ├── Panic                  what no handler should raise: MemoryError, SystemExit
    │   └── ChildDied          the child process of a handler ended under it: an attempt that failed
    └── Steering               raised by a handler to choose the outcome
        ├── Retry              run again after a delay; costs an attempt
        │   └── CallUnderWay   somebody else is at the call of this `once`
        ├── Reject             dead letter at once, with a reason
        │   ├── KeyReuse       a key of `once` was used before with other arguments
        │   └── OutcomeUnknown nobody knows whether an outside call took place: a person must look
        └── Unavailable        the provider is down: the queue pauses, nobody is charged
            └── TransportUnsupported   the transport cannot do this by nature (also a UsageError)
"""

from __future__ import annotations

import re

# It names no SQLSTATE to a client that it does not let in.
_LETS_NOBODY_IN = re.compile(
    r'(database|role) "[^"]*" does not exist|password authentication failed|no pg_hba\.conf entry'
)


class QueueWorkerError(Exception):
    """Base of all exceptions of this package."""

    exit_code = 1


class UsageError(QueueWorkerError):
    """A person asked for something that cannot be done as asked."""

    exit_code = 2


class QueueNotFound(UsageError):
    """The queue does not exist in the database."""


class ConfigError(QueueWorkerError):
    """A setting is missing or contradicts another one; the message names it and the fix."""

    exit_code = 78


class SchemaError(ConfigError):
    """The schema `queue_worker` is missing, changed, too old or too new for this worker."""


class TransportError(QueueWorkerError):
    """A call to the database did not end well."""


class TransportUnavailable(TransportError):
    """The database cannot be reached or went away in mid-call; the call may have committed."""

    @property
    def refused(self) -> bool:
        """Whether the server answers and lets nobody in with these settings: no waiting mends that."""
        return _LETS_NOBODY_IN.search(str(self)) is not None


class CallRefused(TransportError):
    """The database refused a call.

    `sqlstate` is the five-character PostgreSQL error code, or an empty string where none came back.
    """

    def __init__(self, message: str, sqlstate: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class JobFailed(QueueWorkerError):
    """The message became a dead letter: `msg_id`, `reason` (one word) and `error` (the details)."""

    def __init__(self, msg_id: int, reason: str, error: str) -> None:
        super().__init__(f"message {msg_id} failed: {reason}: {error}")
        self.msg_id = msg_id
        self.reason = reason
        self.error = error


class LeaseLost(QueueWorkerError):
    """The lease ended and the message may run elsewhere: nothing may be written for it any more."""


class InvalidPayload(QueueWorkerError):
    """The payload cannot be parsed or does not fit the processor's model."""


class UnsupportedVersion(InvalidPayload):
    """The payload says a version that is not among the processor's `versions`."""


class TimeLimit(QueueWorkerError, TimeoutError):
    """The handler ran longer than its time limit; what it returns later is refused."""


class Panic(QueueWorkerError):
    """A failure that is not an ordinary exception of the handler.

    A BaseException such as SystemExit, MemoryError, or the death of the child process that ran the handler.
    `__cause__` is what was raised, where something was.
    """


class ChildDied(Panic):
    """The process that ran a handler with `isolation="process"` ended by itself; the text names signal or exit code."""


class Steering(QueueWorkerError):
    """Base of what a handler raises to choose the outcome itself."""


class Retry(Steering):
    """Run the message again after `delay` seconds (None: the queue's retry policy); costs an attempt."""

    def __init__(self, reason: str = "retry requested", *, delay: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delay = delay


class CallUnderWay(Retry):
    """Somebody else is at the outside call of this key of `once`; `delay` is when that is over at the latest."""


class Reject(Steering):
    """Make the message a dead letter at once, with `reason`; it is not retried."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class KeyReuse(Reject):
    """A key of `once` was used before with other arguments; raised before anything is called."""


class OutcomeUnknown(Reject):
    """Nobody knows whether the outside call of a key took place.

    Raised by `once` for a call whose process died, and by the function that `once` calls when it cannot tell. The
    message becomes a dead letter for a person; see docs/producing.md.
    """


class Unavailable(Steering):
    """What the handler needs cannot serve anybody now: the queue pauses and tries again by itself.

    The message goes back and is not charged. `delay` is in seconds, such as a provider's Retry-After (None: the
    queue's `breaker_seconds`).
    """

    def __init__(self, reason: str = "the provider is unavailable", *, delay: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delay = delay


class TransportUnsupported(Unavailable, UsageError):
    """This transport cannot do it by nature, such as a transaction over REST; the text names what to do instead.

    In a handler it counts as `Unavailable`: no message is charged for a setting.
    """
