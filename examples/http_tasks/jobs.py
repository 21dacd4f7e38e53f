"""The queue and its worker: READMEs of projects, written into the table `documents` of schema.sql."""

from __future__ import annotations

import os

from pydantic import BaseModel, Field

from queue_worker import App, Job


class Readme(BaseModel):
    """What a README is made of."""

    project: str = Field(min_length=1, max_length=100)
    about: str = ""


app = App(builtins=False)


@app.processor("readme-queue", concurrency=2, timeout=30)
def readme(job: Job[Readme]) -> None:
    """Write the README of one project; its row and the end of the message commit together."""
    save(job, "README.md", f"# {job.payload.project}\n\n{job.payload.about}\n")


def save(job: Job[Readme], name: str, text: str) -> None:
    """Write one document, as the last thing that a handler does."""
    with job.transaction() as tx:
        tx.execute(
            "insert into public.documents (queue, msg_id, name, text, process) values (%s, %s, %s, %s, %s)",
            [job.queue, job.msg_id, name, text, os.getpid()],
        )
