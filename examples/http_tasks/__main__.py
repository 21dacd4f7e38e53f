"""Shows the service in one process, in two, and with a queue more; then looks at what is in the database."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import httpx
import psycopg

from examples.serving import UVICORN, WORKER, call, running
from examples.stage import Checks, database, until

HERE = Path(__file__).parent
SERVICE = "examples.http_tasks.service"
CALLER = ("-m", "examples.http_tasks.caller")


class Show:
    """What the parts share: the database, a token, and a client that carries it."""

    def __init__(self, url: str, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.token = secrets.token_hex(24)
        self.variables = {"DATABASE_URL": url, "QUEUE_WORKER_API_TOKEN": self.token}
        self.client = httpx.Client(headers={"Authorization": f"Bearer {self.token}"}, timeout=30)
        self.check = Checks()

    def post(self, url: str, payload: object) -> tuple[int, Any]:
        """Send JSON; returns the status and the answer."""
        answer = self.client.post(url, json=payload)
        print(f"POST {httpx.URL(url).path} {json.dumps(payload)}: {answer.status_code} {answer.text}", flush=True)
        return answer.status_code, answer.json()

    def written_by(self, queue: str, msg_id: str) -> int:
        """Wait for the document of a message; returns the process that wrote it."""
        query = "select process from public.documents where queue = %s and msg_id = %s"
        row = until(lambda: self.connection.execute(query, [queue, msg_id]).fetchone(), f"document of {queue} {msg_id}")
        return int(row[0])


def combined(show: Show) -> None:
    """One process: the API, our route and the worker; and two calls of another service."""
    print("\none process: uvicorn --factory examples.http_tasks.service:combined", flush=True)
    with running(*UVICORN, f"{SERVICE}:combined", **show.variables) as service:
        url = service.url()
        health = show.client.get(f"{url}/health").json()
        show.check("GET /health says ok", health == {"status": "ok"})
        status, answer = show.post(f"{url}/api/jobs/readme", {"project": "Harbour", "about": "Boats and berths."})
        show.check("POST /api/jobs/readme answers readme-queue", (status, answer["queue"]) == (201, "readme-queue"))
        writer = show.written_by("readme-queue", answer["jobId"])
        show.check("the process that serves has written the README", writer == service.pid)
        status, answer = show.post(f"{url}/api/jobs/readme", {"project": ""})
        show.check("a project without a name is refused", (status, answer["success"]) == (422, False))
        _another_service(show, url)
        service.stop()
        show.check("it stops on SIGTERM, the worker first", "Application shutdown complete" in service.log())


def _another_service(show: Show, url: str) -> None:
    code, printed = call(*CALLER, url, "Lighthouse", TASKS_TOKEN=show.token)
    print(f"another service, with the token: {printed}", flush=True)
    show.check("another service has ordered a README", code == 0 and '"queue":"readme-queue"' in printed)
    code, printed = call(*CALLER, url, "Wreck")
    print(f"another service, without a token: {printed}", flush=True)
    show.check("without a token it is refused", code == 1 and printed.startswith("401"))
    until(lambda: _names(show, "Lighthouse"), "the README of Lighthouse")
    show.check("and nothing was enqueued for it", not _names(show, "Wreck"))


def _names(show: Show, project: str) -> bool:
    query = "select from public.documents where text like %s"
    return show.connection.execute(query, [f"# {project}%"]).fetchone() is not None


def separate(show: Show) -> None:
    """Two processes: the API is there first, the worker comes later."""
    print("\ntwo processes: uvicorn ...service:separate, queue-worker start --app ...jobs:app", flush=True)
    with running(*UVICORN, f"{SERVICE}:separate", **show.variables) as service:
        url = service.url()
        _, answer = show.post(f"{url}/api/jobs/readme", {"project": "Pier"})
        listed = show.client.get(f"{url}/api/jobs/readme-queue", params={"state": "waiting"}).json()["data"]
        show.check("without a worker the task waits", [one["msg_id"] for one in listed] == [answer["jobId"]])
        with running(*WORKER, "examples.http_tasks.jobs:app", **show.variables) as worker:
            writer = show.written_by("readme-queue", answer["jobId"])
            show.check("the worker has written it, not the API", writer == worker.pid != service.pid)
            found = show.client.get(f"{url}/api/jobs/readme-queue/{answer['jobId']}").json()["data"]
            show.check("the API knows that it is done", found["state"] == "archived")
            show.check("the worker stops with exit code 0", worker.stop() == 0)
        service.stop()


def added(show: Show) -> None:
    """A queue and its worker more, in one process that the command line starts."""
    lines = len((HERE / "added.py").read_text().splitlines())
    print("\na queue more: queue-worker start --app examples.http_tasks.added:app --with-api", flush=True)
    show.check(f"added.py has {lines} lines, fewer than 15", lines < 15)
    arguments = (*WORKER, "examples.http_tasks.added:app", "--with-api", "--port", "0")
    with running(*arguments, **show.variables) as worker:
        url = worker.url()
        worker.wait_for(r" ready ")
        show.check("GET /health says ok", show.client.get(f"{url}/health").json() == {"status": "ok"})
        status, answer = show.post(f"{url}/api/jobs/changelog-queue", {"project": "Harbour"})
        show.check("the API serves the queue", (status, answer["queue"]) == (201, "changelog-queue"))
        writer = show.written_by("changelog-queue", answer["jobId"])
        show.check("the same process has written the changelog", writer == worker.pid)
        status, answer = show.post(f"{url}/api/jobs/changelog-queue", {"about": "no project"})
        show.check("a payload that its model does not take is refused", (status, answer["success"]) == (422, False))
        show.check("it stops with exit code 0", worker.stop() == 0)


def main() -> None:
    """Run it all; exit code 0 if every check holds."""
    with database() as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute((HERE / "schema.sql").read_text().encode())
        show = Show(url, connection)
        with show.client:
            combined(show)
            separate(show)
            added(show)
        print("\nwhat is in the database", flush=True)
        for queue, name, text in connection.execute("select queue, name, text from public.documents order by id"):
            print(f"{queue}  {name}  {' '.join(text.split())}", flush=True)
        left = connection.execute("select sum(waiting + delayed + running + dead) from queue_worker.queues").fetchone()
        show.check("nothing is left in the queues", left == (0,))
    show.check.end()


if __name__ == "__main__":
    main()
