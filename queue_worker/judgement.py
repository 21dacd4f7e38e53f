"""What becomes of a failed run: the app's `on_error` callbacks are asked first, then the retry policy decides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from queue_worker import events
from queue_worker.errors import Panic, Steering
from queue_worker.message import Message, Outcome
from queue_worker.processor import ErrorCallback, Job
from queue_worker.retry import RetryPolicy, error_text, is_panic, nobody_failed
from queue_worker.sentry import capture

PATIENCE = 1.0
"""How long the supervising thread waits for callbacks about a time limit, in seconds."""

# One at a time and in all: callbacks that hang cost the supervising thread PATIENCE once, not once for each run.
_late = threading.Lock()


def judge(
    policy: RetryPolicy,
    callbacks: Sequence[ErrorCallback],
    message: Message,
    error: BaseException,
    job: Callable[[], Job[Any]],
    *,
    hurry: bool = False,
) -> Outcome:
    """Return what becomes of `message` after `error`; never raises, or the thread of the run would die with it.

    `job` makes what callbacks are given. With `hurry` they run in a thread of their own, and a late answer is
    ignored: the caller has more to watch than this run.
    """
    capture(message, error)
    answer = None
    if callbacks and not nobody_failed(error):
        asked = _asked_in_time if hurry else _asked
        answer = asked(callbacks, message, error, job)
    try:
        return policy.outcome_for(message, error, answer)
    except Exception as broken:
        # An exception class of the user that cannot even be looked at, say a Retry without its fields.
        return policy.outcome_for(message, broken)


def _asked(
    callbacks: Sequence[ErrorCallback], message: Message, error: BaseException, job: Callable[[], Job[Any]]
) -> Steering | None:
    """Call the callbacks in their order until one answers."""
    told = _as_exception(error)
    for callback in tuple(callbacks):
        try:
            answer = callback(job(), told)
        except Steering as raised:
            answer = raised
        # BaseException: a callback that exits must not end the thread of the run.
        except BaseException as broken:
            _complain(message, callback, error_text(broken))
            continue
        if isinstance(answer, Steering):
            return answer
        if answer is not None:
            _complain(message, callback, f"it returned {type(answer).__name__}, not Retry, Reject, Unavailable or None")
    return None


def _as_exception(error: BaseException) -> Exception:
    if isinstance(error, Exception) and (isinstance(error, Panic) or not is_panic(error)):
        return error
    panic = Panic(error_text(error).partition("\n")[0])
    panic.__cause__ = error
    return panic


def _asked_in_time(
    callbacks: Sequence[ErrorCallback], message: Message, error: BaseException, job: Callable[[], Job[Any]]
) -> Steering | None:
    if not _late.acquire(blocking=False):
        events.emit("on_error.failed", queue=message.queue, msg_id=message.receipt.msg_id, error="another one is late")
        return None
    answers: list[Steering | None] = []
    done = threading.Event()

    def ask() -> None:
        try:
            answers.append(_asked(callbacks, message, error, job))
        finally:
            _late.release()
            done.set()

    threading.Thread(target=ask, name="on_error", daemon=True).start()
    if done.wait(PATIENCE) and answers:
        return answers[0]
    events.emit("on_error.failed", queue=message.queue, msg_id=message.receipt.msg_id, error="it is late")
    return None


def _complain(message: Message, callback: ErrorCallback, error: str) -> None:
    name = getattr(callback, "__qualname__", repr(callback))
    events.emit("on_error.failed", queue=message.queue, msg_id=message.receipt.msg_id, callback=name, error=error)
