"""The queues and their workers. A delivery is a row of `delivered` (schema.sql): put your provider's call there."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel, Field

from queue_worker import App, Job

app = App(builtins=False)


class Notification(BaseModel):
    """What is delivered."""

    message: str = Field(min_length=1, max_length=2000)


class Call(BaseModel):
    """A telephone call that reads the message out, which takes so long."""

    message: str
    seconds: float = Field(gt=0, le=60)


class Resize(BaseModel):
    """A PNG file of the folder IMAGES, and the width to make of it, in pixels."""

    name: str = Field(pattern=r"^[\w-]+\.png$")
    width: int = Field(ge=1, le=4000)


@app.processor("notifications", concurrency=5, timeout=30)
def deliver(job: Job[Notification]) -> None:
    """Deliver one message."""
    _delivered(job, job.payload.message, datetime.now(UTC))


@app.processor("calls", concurrency=3, timeout=10, max_attempts=1)
def call(job: Job[Call]) -> None:
    """Make one telephone call: three at a time in one process, none longer than its time limit."""
    began, end = datetime.now(UTC), time.monotonic() + job.payload.seconds
    while time.monotonic() < end:
        if job.cancelled:
            return  # over the time limit, or cancelled: what a handler returns then is not taken
        time.sleep(0.02)
    _delivered(job, job.payload.message, began)


@app.processor("images", concurrency=2, timeout=60, retry_for={FileNotFoundError: None})
def resize(job: Job[Resize]) -> None:
    """Write NAME-WIDTH.png beside NAME.png, in its proportions; a second run writes the same file again."""
    folder = Path(os.environ.get("IMAGES", "images"))
    source = folder / job.payload.name
    target = folder / f"{source.stem}-{job.payload.width}.png"
    with Image.open(source) as image:
        height = max(1, round(image.height * job.payload.width / image.width))
        resized = image.resize((job.payload.width, height))
    # Under its name when it is whole, so that nobody sees half a picture.
    part = target.with_suffix(f".{job.msg_id}.part")
    resized.save(part, "PNG")
    part.replace(target)


@app.schedule("0 9 * * *", timezone="Europe/Berlin", queue="reports", name="morning")
@app.processor("reports")
def report(job: Job[dict[str, Any]]) -> None:
    """Count what was delivered, every morning at nine."""
    with job.transaction() as tx:
        tx.execute("insert into public.reports (deliveries) select count(*) from public.delivered")


def _delivered(job: Job[Any], message: str, began: datetime) -> None:
    """Write the delivery down; its row and the end of the message commit together."""
    with job.transaction() as tx:
        tx.execute(
            "insert into public.delivered (queue, msg_id, message, began_at) values (%s, %s, %s, %s)",
            [job.queue, job.msg_id, message, began],
        )
