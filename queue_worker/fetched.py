"""Messages for loops of one's own: settled by whoever fetched them, under the same fences as a worker's."""

from __future__ import annotations

import os
import socket
import weakref
from types import TracebackType
from typing import Any, Self

from queue_worker.broker import Broker, Settlement, extend
from queue_worker.config import QueueOptions
from queue_worker.durations import Duration, seconds, whole_seconds
from queue_worker.errors import (
    CallRefused,
    InvalidPayload,
    LeaseLost,
    Retry,
    Steering,
    TransportUnavailable,
    UsageError,
)
from queue_worker.message import Ack, DeadLetter, Message, Outcome, Release, expired
from queue_worker.processor import Processor
from queue_worker.retry import RetryPolicy
from queue_worker.sending import json_text, to_json_data
from queue_worker.transport import Transport

_SENT_EXPIRY = "%Y-%m-%dT%H:%M:%S.%fZ"


class Fetched:
    """One message that this process holds until its lease ends.

    Attributes: `payload`, `headers`, `queue`, `msg_id`, `attempt` (from 1), `max_attempts`, `key` (stable over retries
    and redrives). End it with one of `complete`, `retry`, `reject` and `release`; all of them, and `extend`, raise
    LeaseLost when the lease has ended and the message belongs to somebody else, or when it was ended before.

    As a context manager it completes when the block ends. An exception is recorded as the handler's would be: charged
    and retried, or a dead letter; `Retry`, `Reject` and `Unavailable` only steer and end there, others go on.
    """

    def __init__(self, message: Message, payload: Any, broker: Broker, policy: RetryPolicy, on_success: str) -> None:
        self.payload = payload
        self.headers = message.headers
        self.queue = message.queue
        self.msg_id = message.receipt.msg_id
        self.attempt = message.attempt
        self.max_attempts = policy.max_attempts_for(message)
        self.key = message.key
        self._message = message
        self._broker = broker
        self._policy = policy
        self._on_success = on_success
        self._unsure = False
        self.ended = False

    @property
    def suspect(self) -> bool:
        """Whether an earlier start of this message ended without a recorded outcome."""
        return self._message.suspect

    def complete(self, result: Any = None, *, connection: Any = None) -> None:
        """The work is done; `result` is kept for `Queue.result` where it is not None.

        `connection`: the caller's own (see `Queue.send`), so that the message ends in the transaction of its rows.
        """
        text = None if result is None else json_text(to_json_data(result, "the result"), "the result")
        if connection is not None:
            if text is not None:
                raise UsageError("complete: give result or connection, not both")
            # Here, so that a program which only registers handlers does not load the driver.
            from queue_worker.transport.sharing import settle_in

            settle_in(connection, self.queue, self._message.receipt, self._on_success, counted=self._message.counted)
            self.ended = True
            return
        # An empty text keeps nothing, but is counted where a plain Ack is not looked at.
        self._settle(Ack("" if text is None and self._message.counted else text))

    def retry(self, delay: Duration | None = None, error: str = "retry requested") -> None:
        """The attempt failed and counts; due again after `delay` (None: the queue's series), or dead after the last."""
        asked = Retry(error, delay=None if delay is None else seconds(delay, "delay"))
        self._settle(self._policy.outcome_for(self._message, asked))

    def reject(self, reason: str) -> None:
        """The message is a dead letter, with reason `rejected` and the text `reason`."""
        self._settle(DeadLetter("rejected", reason))

    def release(self, delay: Duration = 0) -> None:
        """Give the message back unharmed, due after `delay`; no attempt is charged."""
        self._settle(Release(seconds(delay, "delay")))

    def extend(self, lease: Duration = 60) -> None:
        """Hold the message for `lease` from now."""
        receipt = self._message.receipt
        if self.ended or extend(self._broker.transport, self.queue, [receipt], whole_seconds(lease, "lease")):
            raise self._lost()

    def _settle(self, outcome: Outcome) -> None:
        if self.ended:
            raise self._lost()
        try:
            turn = self._broker.turn([Settlement(self._message.receipt, outcome)], 0)
        except TransportUnavailable:
            # It may have committed: if the same call finds the message gone when it is repeated, it had.
            self._unsure = True
            raise
        kind, detail = turn.missed.get(self.msg_id, ("", ""))
        if kind == "error":
            raise CallRefused(f"message {self.msg_id} could not be settled: {detail}", detail[:5])
        self.ended = True
        if kind and not (kind == "gone" and self._unsure):
            raise self._lost()

    def _lost(self) -> LeaseLost:
        return LeaseLost(f"message {self.msg_id} of queue {self.queue!r} is not held any more")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self.ended:
            # The block has said itself what becomes of the message.
            return isinstance(error, Steering)
        if error is None:
            self.complete()
            return False
        if isinstance(error, LeaseLost):
            return False
        # Ctrl+C is no failure of the message.
        failed = isinstance(error, Exception)
        try:
            self._settle(self._policy.outcome_for(self._message, error) if failed else Release())
        except LeaseLost:
            if isinstance(error, Steering):
                raise
        return isinstance(error, Steering)


class Fetcher:
    """Claims for one queue; knows what it has handed out, so that a message that kills processes comes alone."""

    def __init__(self, processor: Processor, options: QueueOptions) -> None:
        self._processor = processor
        self._options = options
        self._policy = RetryPolicy.from_options(options)
        self._out: weakref.WeakSet[Fetched] = weakref.WeakSet()

    def fetch(self, transport: Transport, count: int, lease_seconds: float) -> list[Fetched]:
        """Claim up to `count` messages; those that have expired or do not fit are dead letters instead."""
        broker = Broker(
            transport,
            self._processor.queue,
            worker=f"{socket.gethostname()}:{os.getpid()}:fetch",
            lease_seconds=lease_seconds,
            on_success=self._options.on_success,
            max_lost=self._options.max_lost,
        )
        held = [one for one in self._out if not one.ended]
        beside = 0 if any(one.suspect for one in held) else 1
        turn = broker.turn([], count, suspects=beside if held else 2)
        if turn.error is not None:
            raise CallRefused(turn.error, turn.error[:5])
        found, refused = [], []
        for message in turn.messages:
            if message.expired:
                refused.append(Settlement(message.receipt, expired(message)))
                continue
            try:
                payload = self._processor.parse(message.body)
                found.append(Fetched(message, payload, broker, self._policy, self._options.on_success))
            except InvalidPayload as error:
                refused.append(Settlement(message.receipt, self._policy.outcome_for(message, error)))
        self._out.update(found)
        if refused:
            broker.turn(refused, 0)
        return found
