"""queue_worker: consumes pgmq queues on Supabase or any Postgres."""

from queue_worker._version import __version__
from queue_worker.app import App, Producer
from queue_worker.client import Queue, close, once
from queue_worker.errors import (
    CallUnderWay,
    JobFailed,
    KeyReuse,
    LeaseLost,
    OutcomeUnknown,
    QueueWorkerError,
    Reject,
    Retry,
    Unavailable,
)
from queue_worker.processor import Job, Processor, Transaction
from queue_worker.sending import Outgoing

__all__ = [
    "App",
    "CallUnderWay",
    "Job",
    "JobFailed",
    "KeyReuse",
    "LeaseLost",
    "OutcomeUnknown",
    "Outgoing",
    "Processor",
    "Producer",
    "Queue",
    "QueueWorkerError",
    "Reject",
    "Retry",
    "Transaction",
    "Unavailable",
    "__version__",
    "close",
    "once",
]
