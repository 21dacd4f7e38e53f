"""The show: `python -m examples.typed_tasks`. It ends with exit code 0 if every check holds."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import psycopg

import queue_worker
from examples.stage import Checks, database
from examples.typed_tasks import sending, working
from examples.typed_tasks.service import Endpoint, Service, prepare


def main() -> None:
    """Send without a worker, then let the service work, and operate it."""
    check = Checks()
    with (
        tempfile.TemporaryDirectory(prefix="typed-tasks-") as folder,
        contextlib.chdir(folder),  # where nobody's .env is, and what a worker writes goes away
        database() as url,
        psycopg.connect(url, autocommit=True) as db,
        Endpoint(failures=3) as endpoint,
    ):
        prepare(db)
        sending.priorities(db, check)
        sending.transactions(url, db, check)
        sending.batch(url, db, check)
        sending.job_keys(db, check)
        failing, gone = sending.unique(db, check, endpoint.url)
        unknown = sending.unknown(db, check)
        service = Service(Path(folder))
        with service.running() as process:
            working.chain(db, check)
            working.concurrency(db, check)
            working.unknown(db, check, unknown)
            working.retries(db, check, failing)
            working.panics(db, check)
            working.recurring(db, check)
            working.operating(db, check, gone, endpoint)
            working.metrics(db, check, service.api)
            working.stop(check, process)
        queue_worker.close()
    check.end()


if __name__ == "__main__":
    main()
