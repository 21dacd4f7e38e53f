"""A queue and its worker more; the API serves `POST /api/jobs/changelog-queue` as soon as the queue is there."""

from examples.http_tasks.jobs import Readme, app, save
from queue_worker import Job

__all__ = ["app"]


@app.processor("changelog-queue", concurrency=2)
def changelog(job: Job[Readme]) -> None:
    """Begin the changelog of a project."""
    save(job, "CHANGELOG.md", f"# Changes of {job.payload.project}\n")
