"""One handler, one message, no database: what would the worker do with it?"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from queue_worker.config_options import resolve
from queue_worker.errors import UsageError
from queue_worker.judgement import judge
from queue_worker.message import ACK, Message, Outcome, Receipt
from queue_worker.processor import Handler, Job, Processor, model_of
from queue_worker.retry import RetryPolicy
from queue_worker.testing.recorder import Answers, Called, Executed, Recorder, Sent


@dataclass(frozen=True, slots=True)
class Result:
    """What one run led to.

    `outcome` is Ack, Retry (with `delay` in seconds and `error`), DeadLetter (`reason`, `error`) or Release (`delay`,
    `pause`). `result`: what the handler returned. `error`: what it raised. `sent`, `calls` and `statements`: what
    it asked of the database, without what was rolled back. `progress`: what `job.progress` said last. `note`: what
    `job.annotate` added. `settled`: whether the job's transaction committed.
    """

    outcome: Outcome
    result: Any = None
    error: BaseException | None = None
    sent: Sequence[Sent] = ()
    calls: Sequence[Called] = ()
    statements: Sequence[Executed] = ()
    progress: Any = None
    note: Mapping[str, Any] = field(default_factory=dict)
    settled: bool = False


def run(
    target: Processor | Handler,
    payload: Any,
    *,
    headers: Mapping[str, Any] | None = None,
    attempt: int = 1,
    key: str | None = None,
    answers: Answers | None = None,
    cancelled: bool = False,
) -> Result:
    """Run the handler of `target` with `payload` in this thread, and return what the worker would have done.

    `target`: a processor (`app.processors["welcome"]`), which has its options and the app's `on_error`, or a plain
    handler with the default options. `payload`: whatever JSON can hold, or a pydantic model; it goes through the
    processor's model as JSON. `attempt` counts from 1. `key`: what `job.key` is. `answers(statement, params)` returns
    the rows of a statement or of a called function (default: none). `cancelled`: what `job.cancelled` is.

    What the handler raises is judged as the worker judges it and stands in `Result.error`; only KeyboardInterrupt and
    what else is neither an Exception nor SystemExit is let through. Settings from the environment are not read. Raises
    UsageError for a batch handler and for a wrong `attempt`.
    """
    processor = _processor(target)
    if attempt < 1:
        raise UsageError("attempt counts from 1")
    policy = RetryPolicy(resolve(processor.queue, (), processor.options))
    named = {"key": key} if key is not None else {}
    message = Message(
        processor.queue, Receipt(1, attempt, None), to_json(payload), {**(headers or {}), **named}, attempt - 1
    )
    recorder = Recorder(answers, cancelled)

    def new_job(parsed: Any = None) -> Job[Any]:
        return Job(message, parsed, policy.max_attempts_for(message), recorder)

    job: Job[Any] | None = None
    result, error = None, None
    outcome: Outcome = ACK
    try:
        job = new_job(processor.parse(message.body))
        result = _finished(processor.handler(job))
    except (Exception, SystemExit) as raised:
        error = raised
        # After its transaction has committed nothing can undo it.
        if job is None or not job.settled:
            outcome = judge(policy, processor.error_callbacks, message, raised, _giving(job, new_job))
    return Result(
        outcome,
        result,
        error,
        tuple(recorder.sent),
        tuple(recorder.calls),
        tuple(recorder.statements),
        getattr(job, "reported", None),
        dict(job.note) if job else {},
        bool(job and job.settled),
    )


def _processor(target: Any) -> Processor:
    """Return the processor that `target` is, has (what `@app.processor` made of the handler), or could be."""
    for one in (target, getattr(target, "processor", None)):
        if isinstance(one, Processor):
            if getattr(one, "batch", False):
                raise UsageError(
                    f"queue {one.queue!r}: run() takes handlers of one job; test a batch with queue_db.work()"
                )
            return one
    if not callable(target):
        raise UsageError(f"run() takes a processor or a handler, not {type(target).__name__}")
    return Processor("test", target, model_of(target, "test"))


def _finished(returned: Any) -> Any:
    if not inspect.isawaitable(returned):
        return returned

    async def wait() -> Any:
        return await returned

    return asyncio.run(wait())


def _giving(job: Job[Any] | None, new_job: Callable[[], Job[Any]]) -> Callable[[], Job[Any]]:
    return new_job if job is None else lambda: job
