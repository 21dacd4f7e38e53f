"""Handlers at module level, as another process would import them."""

from __future__ import annotations

from pydantic import BaseModel, Field

from queue_worker import App, Job

app = App(builtins=False)


class Welcome(BaseModel):
    user_id: int = Field(alias="userId")
    note: str = "hi"


@app.processor("work", max_attempts=2)
def welcome(job: Job[Welcome]) -> int:
    """Greets."""
    return job.payload.user_id


@app.processor("other")
def plain(job: Job[dict[str, int]]) -> int:
    return job.payload["n"]
