"""Runs the server, puts the clock of its queues forward, and looks at what was delivered."""

from __future__ import annotations

import json
import socket
import tempfile
from contextlib import ExitStack, closing
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
from PIL import Image

from examples.serving import UVICORN, Program, running
from examples.stage import Checks, advance, database, until
from queue_worker import Queue, close

SERVER = "examples.notifications.server"
NEW_YEAR = "2031-01-01T09:00:00+01:00"
DUE = "select vt from pgmq.q_notifications where msg_id = %s"
SCHEMA = Path(__file__).parent / "schema.sql"


class Show:
    """What the parts share: the database and its URL, the server's, a folder for pictures."""

    def __init__(self, connection: psycopg.Connection[Any], database: str, url: str, images: Path) -> None:
        self.connection = connection
        self.database = database
        self.url = url
        self.images = images
        self.client = httpx.Client(timeout=30)
        self.check = Checks()

    def post(self, path: str, payload: object = None, *, url: str = "") -> tuple[int, Any]:
        """Send JSON; returns the status and the answer."""
        answer = self.client.post(f"{url or self.url}{path}", json=payload)
        said = "" if payload is None else f" {json.dumps(payload)}"
        print(f"POST {path}{said}: {answer.status_code} {answer.text}", flush=True)
        return answer.status_code, answer.json()

    def value(self, query: str, *parameters: object) -> Any:
        """Return the first value of the first row, None where there is none."""
        row = self.connection.execute(query.encode(), parameters).fetchone()
        return row[0] if row else None

    def delivered(self) -> list[str]:
        """Return the notifications that were delivered, in order."""
        query = "select message from public.delivered where queue = 'notifications' order by id"
        return [message for (message,) in self.connection.execute(query)]

    def await_delivery(self, *messages: str) -> bool:
        """Wait until so many notifications have been delivered; returns whether they are these, in this order."""
        until(lambda: len(self.delivered()) >= len(messages), f"delivery of {messages}")
        return self.delivered() == list(messages)


def contract(show: Show) -> None:
    """Answers: 200, and 400 with a line that says what is wrong."""
    print("\nanswers", flush=True)
    clock = "select clock_timestamp() + interval '10 seconds'"
    earliest = show.value(clock)
    status, answer = show.post("/schedule-notification", {"message": "in ten seconds"})
    show.check("a notification is accepted", status == 200 and answer["id"].isdecimal())
    due = show.value(DUE, int(answer["id"]))
    show.check("it is due 10 seconds after it came", earliest <= due <= show.value(clock))
    status, answer = show.post("/schedule-notification", {})
    show.check("without a message: 400 and an error", (status, list(answer)) == (400, ["error"]))
    status, answer = show.post("/schedule-notification", {"message": "when?", "delay": "soon"})
    show.check("a delay that is none: 400 and an error", (status, list(answer)) == (400, ["error"]))


def time_passes(show: Show) -> None:
    """Ten seconds, an hour, a fixed date: each is delivered when its time has come, and not before."""
    print("\ntimes", flush=True)
    show.post("/schedule-notification", {"message": "in an hour", "delay": "1h"})
    _, answer = show.post("/schedule-notification", {"message": "happy new year", "at": NEW_YEAR})
    due = show.value(DUE, int(answer["id"]))
    show.check("the fixed date is the due time", due == datetime.fromisoformat(NEW_YEAR))
    show.check("nothing is delivered yet", show.delivered() == [])
    show.check("10 seconds later two wait on", advance(show.connection, "notifications", 10) == 2)
    show.check("... and the first is delivered", show.await_delivery("in ten seconds"))
    show.check("an hour later one waits on", advance(show.connection, "notifications", 3600) == 1)
    show.check("... and the second is delivered", show.await_delivery("in ten seconds", "in an hour"))
    left = show.value("select extract(epoch from max(vt) - clock_timestamp()) from pgmq.q_notifications")
    show.check("at the date none waits", advance(show.connection, "notifications", float(left)) == 0)
    all_three = ("in ten seconds", "in an hour", "happy new year")
    show.check("... and the third is delivered", show.await_delivery(*all_three))


def one_of_a_kind(show: Show) -> None:
    """A key makes one message of two; cancelled and completed ones are not delivered."""
    print("\nkeys, cancel, complete", flush=True)
    _, first = show.post("/schedule-notification", {"message": "your parcel", "key": "parcel-7"})
    _, second = show.post("/schedule-notification", {"message": "your parcel", "key": "parcel-7"})
    waiting = "select count(*) from pgmq.q_notifications"
    show.check("the same key is the same message", (first["id"], show.value(waiting)) == (second["id"], 1))
    _, wrong = show.post("/schedule-notification", {"message": "a mistake"})
    _, by_hand = show.post("/schedule-notification", {"message": "told in person"})
    cancelled, _ = show.post(f"/notifications/{wrong['id']}/cancel")
    completed, _ = show.post(f"/notifications/{by_hand['id']}/complete")
    show.check("one is cancelled, one completed by hand", (cancelled, completed) == (200, 200))
    state = "select state from queue_worker.message('notifications', %s)"
    states = [show.value(state, int(one["id"])) for one in (wrong, by_hand)]
    show.check("the archive knows which is which", states == ["cancelled", "archived"])
    again, answer = show.post(f"/notifications/{wrong['id']}/cancel")
    show.check("a second time: 404 and an error", (again, list(answer)) == (404, ["error"]))
    advance(show.connection, "notifications", 10)
    until(lambda: "your parcel" in show.delivered(), "the parcel")
    show.check("neither is delivered", show.delivered()[3:] == ["your parcel"])


def own_loop(show: Show) -> None:
    """Fetch: a loop of one's own in place of a handler; higher priorities come first."""
    print("\nfetch and priority", flush=True)
    show.value("select queue_worker.create_queue('digest')")
    digest = Queue("digest", database=show.database)
    for name, priority in (("news", 0), ("alarm", 100), ("invoice", 50)):
        digest.send({"item": name}, priority=priority)
    order = []
    while found := digest.fetch(1):
        for message in found:
            with message:
                order.append(message.payload["item"])
    print("fetched:", ", ".join(order), flush=True)
    show.check("the highest priority comes first", order == ["alarm", "invoice", "news"])
    show.check("what a loop has fetched is done", show.value("select count(*) from pgmq.a_digest") == 3)
    close()


def calls(show: Show) -> None:
    """Six calls, three at a time; and one that is cut off at its time limit."""
    print("\nteam size and time limit", flush=True)
    for number in range(6):
        show.post("/call", {"message": f"call {number}", "seconds": 0.3})
    _, endless = show.post("/call", {"message": "a call without end", "seconds": 60, "limit": "1s"})
    count = "select count(*) from public.delivered where queue = 'calls'"
    until(lambda: show.value(count) == 6, "six calls")
    together = show.value(
        "select max((select count(*) from public.delivered other where other.queue = 'calls'"
        " and other.began_at <= one.began_at and other.done_at > one.began_at))"
        " from public.delivered one where queue = 'calls'"
    )
    show.check("never more than three at a time, and more than one", together in (2, 3))
    dead = "select error from queue_worker.dead_letters where queue = 'calls' and msg_id = %s"
    error = until(lambda: show.value(dead, int(endless["id"])), "the call without end")
    print("dead letter:", error, flush=True)
    show.check("the call without end was cut off", "longer than 1 s" in error and show.value(count) == 6)


def images(show: Show) -> None:
    """A second queue with real work: a picture of 640 x 480 becomes one of 160 x 120."""
    print("\nimages", flush=True)
    Image.radial_gradient("L").resize((640, 480)).convert("RGB").save(show.images / "harbour.png")
    show.post("/resize-image", {"name": "harbour.png", "width": 160})
    small = show.images / "harbour-160.png"
    until(small.exists, "the small picture")
    with Image.open(small) as image:
        print(f"{small.name}: {image.format}, {image.width} x {image.height} pixels", flush=True)
        show.check("it is a PNG of 160 x 120 pixels", (image.format, image.size) == ("PNG", (160, 120)))
    _, answer = show.post("/resize-image", {"name": "nothing.png", "width": 160})
    dead = "select reason from queue_worker.dead_letters where queue = 'images' and msg_id = %s"
    reason = until(lambda: show.value(dead, int(answer["id"])), "the picture that is not there")
    show.check("a picture that is not there is a dead letter at once", reason == "rejected")


def every_morning(show: Show) -> None:
    """The schedule's next time, and one run by hand."""
    print("\na report at nine", flush=True)
    next_time = "select next_fire_at at time zone timezone from queue_worker.schedules where name = 'morning'"
    next_fire = until(lambda: show.value(next_time), "the next time of the schedule")
    show.check("it fires next at 09:00 in Berlin", next_fire.strftime("%H:%M:%S") == "09:00:00")
    show.value("select queue_worker.run_schedule('morning')")
    counted = until(lambda: show.value("select deliveries from public.reports"), "the report")
    print(f"report: {counted} deliveries", flush=True)
    show.check("run by hand, it counts the deliveries", counted == show.value("select count(*) from public.delivered"))


def database_away(show: Show, server: Program) -> None:
    """A server whose database is away answers 500 with an error, and lives."""
    print("\nthe database is away", flush=True)
    status, answer = show.post("/schedule-notification", {"message": "lost?"}, url=server.url())
    show.check("500 and an error", (status, list(answer)) == (500, ["error"]))


def main() -> None:
    """Run it all; exit code 0 if every check holds."""
    with ExitStack() as stack:
        url = stack.enter_context(database())
        connection = stack.enter_context(psycopg.connect(url, autocommit=True))
        connection.execute(SCHEMA.read_text().encode())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="example-")))
        # Bound and not listening: nobody else can begin to listen there.
        nobody = stack.enter_context(closing(socket.socket()))
        nobody.bind(("127.0.0.1", 0))
        away = f"postgresql://nobody@127.0.0.1:{nobody.getsockname()[1]}/none"
        # The pause of a moment, because putting the clock forward wakes nobody.
        variables = {"DATABASE_URL": url, "IMAGES": str(folder), "QUEUE_WORKER_CYCLE_SECONDS": "0.1"}
        server = stack.enter_context(running(*UVICORN, f"{SERVER}:combined", **variables))
        without = stack.enter_context(running(*UVICORN, f"{SERVER}:separate", DATABASE_URL=away))
        show = Show(connection, url, server.url(), folder)
        stack.enter_context(show.client)
        for part in (contract, time_passes, one_of_a_kind, own_loop, calls, images, every_morning):
            part(show)
        database_away(show, without)
        server.stop()
        show.check("the server stops, the worker first", "Application shutdown complete" in server.log())
    show.check.end()


if __name__ == "__main__":
    main()
