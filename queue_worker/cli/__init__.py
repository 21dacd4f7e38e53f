"""The command line: talks to people, and calls the SQL functions that everybody else uses."""

from queue_worker.cli.program import leave, main, run

__all__ = ["leave", "main", "run"]
