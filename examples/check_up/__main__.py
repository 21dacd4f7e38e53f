"""The show: `make example-check_up`."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from examples.check_up import jobs
from examples.service import command, folder, settings, worker
from examples.serving import Program
from examples.stage import Checks, database, until
from queue_worker.demo_smtp import CaptureServer

HERE = Path(__file__).parent
QUEUES = ("email", "reports", "payments")
SUBJECT = "Ваш чекап завершен"
MANY = 25
VALUES = [
    ("Гемоглобин", "141", "г/л", "130–160"),
    ("Глюкоза", "5.1", "ммоль/л", "3.9–6.1"),
    ("Холестерин", "6.2", "ммоль/л", "до 5.2"),
]


class Show(NamedTuple):
    """What all scenes use: the clinic's database, its mail server, and the folder that the worker writes to."""

    db: psycopg.Connection[Any]
    mail: CaptureServer
    place: Path
    check: Checks

    def value(self, query: str, *params: Any) -> Any:
        """Return the one value of a query; None without a row."""
        row = self.db.execute(query, params).fetchone()
        return row and row[0]

    def queued(self) -> list[int]:
        """How many messages stand in email, reports and payments."""
        query = "select queue, waiting + delayed + running from queue_worker.queues"
        counts = dict(self.db.execute(query).fetchall())
        return [counts[queue] for queue in QUEUES]

    def done(self) -> list[int]:
        """How many messages of email, reports and payments are done."""
        return [self.value(f"select count(*) from pgmq.a_{queue}") for queue in QUEUES]  # noqa: S608

    def settled(self, *done: int) -> None:
        """Wait until so many messages of each queue are done."""
        until(lambda: self.done() == list(done), f"{done} messages are done")

    def mails_to(self, address: str) -> list[str]:
        """The subjects of the mails that this person got."""
        return [str(one.message["Subject"]) for one in self.mail.received if address in one.recipients]


def book(show: Show, name: str, address: str, price_minor: int) -> int:
    """Put a person and a check-up with three values into the clinic's tables; returns the id of the check-up."""
    query = """with p as (insert into public.profiles (full_name, email) values (%s, %s) returning id)
        insert into public.check_ups (user_id, email, title, status, price_minor, account)
        select p.id, %s, 'Базовый', 'running', %s, 'card-of-' || p.id from p returning id"""
    check_up: int = show.value(query, name, address, address, price_minor)
    with show.db.cursor() as cursor:
        cursor.executemany(
            "insert into public.check_up_values values (%s, %s, %s, %s, %s)", [(check_up, *row) for row in VALUES]
        )
    return check_up


def transactions(show: Show, anna: int) -> None:
    """What is rolled back queues nothing; what commits queues three messages."""
    print("\n--- no worker runs yet: a rollback, then a commit")
    with show.db.transaction(force_rollback=True):
        jobs.finish(show.db, anna)
        show.check("inside the transaction there is one message in each queue", show.queued() == [1, 1, 1])
    show.check("after its rollback there is none", show.queued() == [0, 0, 0])
    jobs.finish(show.db, anna)
    show.check("after a commit there is one in each", show.queued() == [1, 1, 1])
    command("status")


def handled(show: Show, running: Program, anna: int) -> None:
    """The worker handles them: the mail, the files, the money."""
    print("\n--- the worker")
    for queue in QUEUES:
        print(" ", running.wait_for(rf"looks every 5 s, claims 10 at a time.* queue={queue}\b"))
    show.settled(1, 1, 1)
    [mail] = show.mail.received
    body = mail.message.get_body()
    text = body.get_content() if body else ""
    print(f"  mail to {', '.join(mail.recipients)}: {mail.message['Subject']}\n    {text.strip().splitlines()[-1]}")
    show.check("the subject is what the trigger wrote", mail.message["Subject"] == SUBJECT)
    show.check("so is the text", "Ваш чекап «Базовый» завершен." in text)
    folder_ = show.place / "reports" / "check_ups"
    rows = list(csv.reader((folder_ / f"{anna}.csv").open(encoding="utf-8-sig", newline="")))
    print(f"  reports/check_ups/{anna}.csv: {rows}")
    show.check("the report has the values", rows[1:] == [list(row) for row in VALUES])
    show.check("it is there as a page, too", "Чекап «Базовый»" in (folder_ / f"{anna}.html").read_text())
    row = show.db.execute("select payment_status, payment_id from public.check_ups where id = %s", [anna]).fetchone()
    print(f"  payment of check-up {anna}: {row}")
    show.check("the check-up is paid", row is not None and row[0] == "succeeded" and row[1])


def twice(show: Show, anna: int) -> None:
    """Finished is finished: by the trigger's condition, and by the keys of mail and payment."""
    print("\n--- finished twice")
    jobs.finish(show.db, anna)
    show.check("finished again: nothing is queued", show.queued() == [0, 0, 0] and show.done() == [1, 1, 1])
    show.db.execute("update public.check_ups set status = 'running' where id = %s", [anna])
    jobs.finish(show.db, anna)
    show.settled(2, 2, 2)
    show.check("opened and finished again: three messages, and still one mail", len(show.mail.received) == 1)
    show.check("and one charge", show.value("select count(*) from queue_worker_data.sandbox_charges") == 1)


def many(show: Show) -> None:
    """25 check-ups at once: no claim takes more than ten."""
    print(f"\n--- {MANY} check-ups in one transaction")
    show.db.execute((HERE / "claims.sql").read_bytes())
    people = [f"user{number}@example.com" for number in range(1, MANY + 1)]
    with show.db.transaction():
        for price, address in enumerate(people, 10_000):
            jobs.finish(show.db, book(show, address.partition("@")[0], address, price))
    show.settled(*[2 + MANY] * 3)
    for queue in QUEUES:
        sizes = [
            size
            for (size,) in show.db.execute(
                "select sum(messages)::int from clinic.claims where queue = %s group by tx order by tx", [queue]
            )
        ]
        print(f"  claims of queue {queue}: {', '.join(map(str, sizes))}")
        show.check(f"{queue}: {MANY} messages, at most 10 in a claim", sum(sizes) == MANY and max(sizes) == 10)
    show.check("each person got one mail", all(show.mails_to(address) == [SUBJECT] for address in people))
    files = list((show.place / "reports" / "check_ups").iterdir())
    show.check("each check-up has its two files", len(files) == 2 * (1 + MANY))
    paid = "select count(*), sum(price_minor) from public.check_ups where payment_status = 'succeeded'"
    charged = "select count(*), sum(amount_minor) from queue_worker_data.sandbox_charges where status = 'succeeded'"
    show.check(
        "each is paid, and was charged its price once",
        show.db.execute(paid).fetchone() == show.db.execute(charged).fetchone() and show.value(paid) == 1 + MANY,
    )
    show.check("nothing failed", show.value("select count(*) from queue_worker.failures") == 0)
    command("status")


@contextmanager
def staged(place: Path) -> Iterator[Show]:
    """The database with the clinic's tables, and its mail server, while the block runs."""
    with database() as url, CaptureServer(place / "mails") as mail, psycopg.connect(url, autocommit=True) as db:
        shutil.copy(HERE / "settings.env", place / ".env")
        settings({"QUEUE_WORKER_STATE_DIR": str(place), "SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(mail.port)})
        db.execute((HERE / "schema.sql").read_bytes())
        yield Show(db, mail, place, Checks())


def main() -> None:
    """Play all scenes; the exit code is 1 if anything was not as it should be."""
    with folder("check_up") as place, staged(place) as show:
        print(f"mails, reports and the log of the worker go to {place} (kept where you name it: EXAMPLE_FOLDER)")
        anna = book(show, "Анна Петрова", "anna@example.com", 4990)
        transactions(show, anna)
        with worker("--app", "examples.check_up.jobs:app", log=place / "worker.log") as running:
            handled(show, running, anna)
            twice(show, anna)
            many(show)
            show.check("the worker ends with exit code 0 after SIGTERM", running.stop() == 0)
    show.check.end()


if __name__ == "__main__":
    main()
