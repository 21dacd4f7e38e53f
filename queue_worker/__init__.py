"""queue_worker: consumes pgmq queues on Supabase or any Postgres."""

from queue_worker._version import __version__
from queue_worker.errors import LeaseLost, QueueWorkerError, Reject, Retry, Unavailable
from queue_worker.processor import App, Job, Processor, Transaction

__all__ = [
    "App",
    "Job",
    "LeaseLost",
    "Processor",
    "QueueWorkerError",
    "Reject",
    "Retry",
    "Transaction",
    "Unavailable",
    "__version__",
]
