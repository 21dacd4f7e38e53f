"""The app of the clinic: what its worker runs, and the one thing that its program does.

The processors of `email`, `reports` and `payments` are built in, so there is no handler here. What is queued, and when,
stands in schema.sql; how it is worked off, in settings.env.
"""

from __future__ import annotations

from typing import Any

import psycopg

from queue_worker import App

app = App()


def finish(connection: psycopg.Connection[Any], check_up: int) -> None:
    """Finish a check-up in the caller's transaction; the trigger queues mail, report and payment along with it."""
    connection.execute("update public.check_ups set status = 'finished', finished_at = now() where id = %s", [check_up])
