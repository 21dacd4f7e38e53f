"""The show: `make example-mail_queue`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psycopg

import queue_worker
from examples.mail_queue import jobs
from examples.mail_queue.servers import MailServer, listener
from examples.service import command, folder, settings, worker
from examples.serving import Program
from examples.stage import Checks, advance, database, until

SLOW, PICKY, NOBODY = "slow@example.com", "picky@example.com", "nobody@example.com"
READERS = [f"reader{number}@example.com" for number in range(1, 31)]
DELAYS = [60, 120, 240, 480, 960]


class Show(NamedTuple):
    """What all scenes use. `heard`: the alerts that a webhook got. `api`: the URL of the HTTP API."""

    db: psycopg.Connection[Any]
    mail: MailServer
    heard: Sequence[Mapping[str, Any]]
    worker: Program
    api: str
    check: Checks

    def value(self, query: str, *params: Any) -> Any:
        """Return the one value of a query; None without a row."""
        row = self.db.execute(query, params).fetchone()
        return row and row[0]

    def state(self, msg_id: int) -> str:
        """Return what became of a message: waiting, delayed, running, done, dead or cancelled."""
        return str(self.value("select state from queue_worker.result('email', %s)", msg_id))

    def done(self, *msg_ids: int) -> None:
        """Wait until these messages are done."""
        until(lambda: all(self.state(msg_id) == "done" for msg_id in msg_ids), f"messages {msg_ids} are done")

    def alert(self, name: str, event: str) -> str:
        """Wait until the webhook got an alert of this name; returns the line for people."""
        came = until(lambda: [one for one in self.heard if (one["name"], one["event"]) == (name, event)], event)
        return str(came[0]["text"])


def mails(show: Show) -> None:
    """Single mails and templates."""
    print("\n--- an order, a welcome, a password, a test mail")
    order = (1001, "ann@example.com", "49.90 EUR")
    show.done(jobs.order_confirmed(*order))
    show.done(jobs.order_confirmed(*order), jobs.welcome("Boris", "boris@example.com"))
    show.done(jobs.password_reset("Ann", "ann@example.com", "t0k3n"))
    show.check("the test mail was sent", command("email", "test", "carl@example.com", "--wait") == 0)
    show.check(
        "Ann got her order, once, and her link",
        show.mail.to("ann@example.com") == ["Your order 1001", "Reset your password"],
    )
    show.check("Boris was greeted by the template", show.mail.to("boris@example.com") == ["Welcome to Lavka, Boris"])


def batch(show: Show) -> None:
    """Thirty mails at once, while the queue is paused: the backlog alert."""
    print("\n--- a newsletter while the queue is paused")
    command("pause", "email", "--reason", "the show")
    ids = jobs.newsletter("May", "Spring is here.\n", READERS)
    print(f"  webhook: {show.alert('backlog', 'alert.fired')}")
    row = show.value("select detail from queue_worker.alerts where name = 'backlog' and cleared_at is null")
    show.check("queue_worker.alerts has it", row == "30 messages wait, more than 20")
    show.check(
        "the log of the worker has it", show.worker.wait_for(r'alert=backlog detail="30 messages wait.*queue=email')
    )
    command("resume", "email")
    show.done(*ids)
    show.check("each reader got one mail", all(len(show.mail.to(reader)) == 1 for reader in READERS))
    print(f"  webhook: {show.alert('backlog', 'alert.cleared')}")


def retries(show: Show) -> int:
    """A mail that its server does not take five times, and then once more; returns its id."""
    print("\n--- a server that is ill: five retries, then a dead letter")
    show.mail.answers[SLOW] = "452 4.3.1 the disk is full"
    msg_id = jobs.order_confirmed(1002, SLOW, "12.00 EUR")
    delays = []
    for attempt in range(1, 6):
        delays.append(_due_in(show, msg_id, attempt))
        advance(show.db, "email", delays[-1])
    until(lambda: show.state(msg_id) == "dead", "the sixth attempt was the last")
    show.check("five retries, after 60, 120, 240, 480 and 960 s", delays == DELAYS)
    show.check("the server was asked six times", show.mail.asked[SLOW] == 6)
    show.check(
        "it is a dead letter, for its attempts",
        show.value("select reason from queue_worker.dead_letters where msg_id = %s", msg_id) == "attempts",
    )
    print(f"  webhook: {show.alert('dead', 'alert.fired')}")
    return msg_id


def _due_in(show: Show, msg_id: int, attempt: int) -> int:
    """Wait until an attempt has failed; returns how long after it the next one is due, by the rows, in seconds."""
    query = """select round(extract(epoch from m.vt - f.failed_at))::int, f.error
        from pgmq.q_email m join queue_worker.failures f on (f.queue, f.msg_id) = ('email', m.msg_id)
        where m.msg_id = %s and f.attempt = %s and m.vt > clock_timestamp()"""
    delay, error = until(lambda: show.db.execute(query, [msg_id, attempt]).fetchone(), f"attempt {attempt} failed")
    print(f"  attempt {attempt}: {error.splitlines()[0]}; due again in {delay} s")
    return int(delay)


def greylisting(show: Show) -> None:
    """451 (and 450) means: come later; who comes too early is refused again."""
    print("\n--- a server that answers 451: come later")
    show.mail.answers[PICKY] = "451 4.7.1 greylisted, come later"
    msg_id = jobs.order_confirmed(1003, PICKY, "7.00 EUR")
    delay = _due_in(show, msg_id, 1)
    show.check("after 451 the first retry is after 300 s", delay == 300)
    del show.mail.answers[PICKY]
    advance(show.db, "email", delay)
    show.done(msg_id)
    show.check("then the server took it", show.mail.to(PICKY) == ["Your order 1003"])


def look(show: Show, dead: int) -> None:
    """A mail that is refused for good, and where to see it all."""
    print("\n--- a recipient who does not exist, and a look at the queue")
    show.mail.answers[NOBODY] = "550 5.1.1 no such mailbox"
    bounced = jobs.order_confirmed(1004, NOBODY, "3.00 EUR")
    until(lambda: show.state(bounced) == "dead", "the mail bounced")
    show.check("550 is a dead letter at once", show.mail.asked[NOBODY] == 1)
    command("status")
    command("dead", "list", "email")
    command("show", "email", str(dead))
    answer = httpx.get(f"{show.api}/api/queues/email/status").json()
    print("$ curl -s $API/api/queues/email/status")
    print(json.dumps(answer))
    facts = {name: answer["data"][name] for name in ("waiting", "running", "completed", "retried", "dead")}
    show.check(
        "the HTTP API counts the same", facts == {"waiting": 0, "running": 0, "completed": 36, "retried": 6, "dead": 2}
    )


def redrive(show: Show, dead: int) -> None:
    """The server is well again: its dead letter is sent again, and the other one deleted."""
    print("\n--- the server is well again")
    del show.mail.answers[SLOW]
    dead_id = show.value("select dead_id from queue_worker.dead_letters where msg_id = %s", dead)
    command("retry", "email", str(dead_id))
    until(lambda: show.mail.to(SLOW), "the mail came")
    until(lambda: show.value("select waiting + running from queue_worker.queues where queue = 'email'") == 0, "settled")
    show.check("the dead letter that was sent again arrived, once", show.mail.to(SLOW) == ["Your order 1002"])
    command("clear", "email", "--yes")
    show.check("no dead letter is left", show.value("select count(*) from queue_worker.dead_letters") == 0)
    print(f"  webhook: {show.alert('dead', 'alert.cleared')}")
    show.check(
        "every mail is in the ledger as sent, but the one that bounced",
        show.db.execute("select state, count(*) from queue_worker_data.mails group by state order by state").fetchall()
        == [("bounced", 1), ("sent", 36)],
    )


@contextmanager
def staged(place: Path) -> Iterator[Show]:
    """Everything that the scenes need, while the block runs."""
    with database() as url, MailServer(place / "mails") as mail, listener() as (webhook, heard):
        settings(
            {
                "QUEUE_WORKER_STATE_DIR": str(place),
                "SMTP_HOST": "127.0.0.1",
                "SMTP_PORT": str(mail.port),
                "SMTP_FROM_EMAIL": "shop@lavka.example",
                "SMTP_FROM_NAME": jobs.SHOP,
                # The show does not wait 5 s to see that the clock was put forward, nor 10 s for alerts.
                "QUEUE_WORKER_CYCLE_SECONDS": "0.2",
                "QUEUE_WORKER_ALERT_CHECK_SECONDS": "0.3",
                "QUEUE_WORKER_ALERT_HOLD_SECONDS": "0.2",
                "QUEUE_WORKER_ALERT_BACKLOG": "20",
                "QUEUE_WORKER_ALERT_WEBHOOK": webhook,
                "QUEUE_WORKER_ALERT_WEBHOOK_ALLOW_PRIVATE": "true",
            }
        )
        check = Checks()
        check("the way to the mail server is free", command("email", "check") == 0)
        arguments = ("--app", "examples.mail_queue.jobs:app", "-q", "email", "--with-api", "--port", "0")
        with (
            worker(*arguments, log=place / "worker.log") as running,
            psycopg.connect(url, autocommit=True) as db,
        ):
            api = running.wait_for(r"API and dashboard at (\S+)")
            yield Show(db, mail, heard, running, api, check)
            queue_worker.close()
            check("the worker ends with exit code 0 after SIGTERM", running.stop() == 0)


def main() -> None:
    """Play all scenes; the exit code is 1 if anything was not as it should be."""
    with folder("mail_queue") as place:
        print(f"mails and the log of the worker go to {place} (kept where you name it: EXAMPLE_FOLDER)")
        with staged(place) as show:
            mails(show)
            batch(show)
            dead = retries(show)
            greylisting(show)
            look(show, dead)
            redrive(show, dead)
        show.check.end()


if __name__ == "__main__":
    main()
