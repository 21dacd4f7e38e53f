"""What the demo came to: figures read from the database, the file system and the mail server, and their checks."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from queue_worker import demo_data
from queue_worker.demo_data import ALWAYS_FAILS, DECLINED, FAILS_TWICE, MAILS, PAYMENTS, QUEUES
from queue_worker.demo_smtp import CaptureServer


class Progress(NamedTuple):
    """How far the demo is: messages archived or dead, messages in the queues, payments without a result."""

    settled: int
    live: int
    pending: int


class Check(NamedTuple):
    """Something that must be so."""

    name: str
    expected: Any
    found: Any

    @property
    def ok(self) -> bool:
        """Whether it is so."""
        return bool(self.expected == self.found)


@dataclass
class Results:
    """The summary of a demo. `seconds`: how long all of it took."""

    settings: Mapping[str, str]
    formats: Sequence[str]
    queues: list[dict[str, Any]]
    payments: list[dict[str, Any]]
    charges: list[dict[str, Any]]
    ledger: dict[str, int]
    dead: list[dict[str, Any]]
    mails: list[dict[str, Any]]
    files: list[dict[str, Any]]
    folder: Path
    seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    def payment(self, account: str) -> dict[str, Any]:
        """Return the row of public.payments of this account."""
        return next((row for row in self.payments if row["account"] == account), {})


def rows(connection: Any, query: str, *params: Any) -> list[dict[str, Any]]:
    """Run a query; returns its rows as dictionaries."""
    cursor = connection.execute(query, params or None)
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def progress_of(connection: Any) -> Progress:
    """Read how far the demo is."""
    [row] = rows(
        connection,
        "select (select sum(q.dead) from queue_worker.queues q)::bigint + (select count(*) from pgmq.a_email)"
        " + (select count(*) from pgmq.a_reports) + (select count(*) from pgmq.a_payments) as settled,"
        " (select sum(q.waiting + q.delayed + q.running) from queue_worker.queues q)::bigint as live,"
        " (select count(*) from public.payments p where p.status = 'pending') as pending",
    )
    return Progress(**row)


def collect(
    connection: Any,
    smtp: CaptureServer,
    folder: Path,
    exit_code: int | None,
    formats: Sequence[str],
    settings: Mapping[str, str],
) -> Results:
    """Read everything back and check it; `exit_code` is the worker's (None: it had to be killed)."""
    results = Results(
        settings=settings,
        formats=formats,
        queues=rows(connection, _QUEUES),
        payments=rows(connection, _PAYMENTS),
        charges=rows(connection, "select key, status, amount_minor, currency from queue_worker_data.sandbox_charges"),
        ledger={row["state"]: row["n"] for row in rows(connection, _LEDGER)},
        dead=rows(connection, "select * from queue_worker.dead_letters order by dead_id"),
        mails=[_mail(one) for one in smtp.received],
        files=[
            {"path": str(path), "bytes": path.stat().st_size}
            for path in sorted((folder / "reports").rglob("*"))
            if path.is_file()
        ],
        folder=folder,
    )
    results.checks = [
        *_queue_checks(results),
        *_payment_checks(results),
        *_mail_checks(results, smtp),
        *_file_checks(results, smtp),
        Check("the worker's exit code after SIGTERM", 0, exit_code),
    ]
    return results


_QUEUES = """
    select q.queue, q.waiting + q.delayed + q.running as "left",
           (case q.queue when 'email' then (select count(*) from pgmq.a_email)
                         when 'reports' then (select count(*) from pgmq.a_reports)
                         else (select count(*) from pgmq.a_payments) end) as done,
           (select count(*) from queue_worker.failures f where f.queue = q.queue and f.retry_at is not null) as retried,
           q.dead
    from queue_worker.queues q order by q.queue"""

# A payment that needed retries: its message is found by the row's id, wherever it went.
_PAYMENTS = """
    select p.id, p.account, p.description, p.amount_minor, p.currency, p.status, p.error, m.msg_id,
           (select count(*) from queue_worker.failures f where f.queue = 'payments' and f.msg_id = m.msg_id) as failures
    from public.payments p
    left join (select a.msg_id, a.message from pgmq.a_payments a
               union all select d.msg_id, d.payload from queue_worker.dead_letters d where d.queue = 'payments') m
        on m.message ->> 'id' = p.id::text
    order by p.id"""

_LEDGER = "select state, count(*) as n from queue_worker_data.payment_ledger group by state order by state"


def _mail(one: Any) -> dict[str, Any]:
    return {
        "to": list(one.recipients),
        "subject": str(one.message["Subject"]),
        "attachments": [{"name": name, "bytes": len(content)} for name, content in one.attachments],
        "file": str(one.file),
    }


def _queue_checks(results: Results) -> list[Check]:
    found = {row["queue"]: (row["done"], row["retried"], row["dead"], row["left"]) for row in results.queues}
    attempts = demo_data.MAX_ATTEMPTS
    expected = {
        "email": (len(MAILS), 0, 1, 0),
        "payments": (len(PAYMENTS) - 1, 2 + attempts - 1, 1, 0),
        "reports": (1, 0, 0, 0),
    }
    return [
        Check(f"queue {queue}: done, retried, dead, left", list(expected[queue]), list(found.get(queue, ())))
        for queue in QUEUES
    ] + [
        Check(
            "dead letters: queue, reason, attempts",
            sorted([["email", "invalid", 1], ["payments", "rejected", attempts]]),
            sorted([row["queue"], row["reason"], row["attempts"]] for row in results.dead),
        )
    ]


def _payment_checks(results: Results) -> list[Check]:
    status = {FAILS_TWICE: "succeeded", ALWAYS_FAILS: "pending", DECLINED: "failed"}
    charged = [row for row in results.charges if row["status"] == "succeeded"]
    due = [one for one in PAYMENTS if status.get(one.account, "succeeded") == "succeeded"]
    return [
        Check(
            "payments: account and status",
            {one.account: status.get(one.account, "succeeded") for one in PAYMENTS},
            {row["account"]: row["status"] for row in results.payments},
        ),
        Check(
            "charges: each payment once, with its amount",
            sorted((one.amount_minor, one.currency) for one in due),
            sorted((row["amount_minor"], row["currency"]) for row in charged),
        ),
        Check("ledger", {"failed": 1, "succeeded": len(due), "unknown": 1}, results.ledger),
        Check("failures of the payment that fails twice", 2, results.payment(FAILS_TWICE).get("failures")),
        Check(
            "failures of the payment that always fails",
            demo_data.MAX_ATTEMPTS,
            results.payment(ALWAYS_FAILS).get("failures"),
        ),
    ]


def _mail_checks(results: Results, smtp: CaptureServer) -> list[Check]:
    return [
        Check(
            "mails: subject and recipients",
            {subject: sorted(to) for subject, to in MAILS.items()},
            {one["subject"]: sorted(one["to"]) for one in results.mails},
        ),
        Check("mails received, each once", len(MAILS), len(smtp.received)),
    ]


def _file_checks(results: Results, smtp: CaptureServer) -> list[Check]:
    paths = {Path(one["path"]).suffix[1:]: Path(one["path"]) for one in results.files}
    files = {kind: path.read_bytes() for kind, path in paths.items()}
    attached = {
        Path(name).suffix[1:]: content
        for one in smtp.received
        if str(one.message["Subject"]) == demo_data.REPORT_TITLE
        for name, content in one.attachments
    }
    listed = list(csv.DictReader(io.StringIO(files.get("csv", b"").decode("utf-8-sig"))))
    document = files.get(results.formats[1], b"").lstrip()[:5].lower()
    return [
        Check("report: the files' formats", sorted(results.formats), sorted(files)),
        Check("report: the mail's attachments are the files", True, bool(files) and attached == files),
        Check(
            "report: the rows of the csv file",
            [[one.description, one.account, f"{one.amount_minor / 100:.2f}", one.currency] for one in PAYMENTS],
            [[row.get(name) for name in ("description", "account", "amount", "currency")] for row in listed],
        ),
        Check(f"report: the {results.formats[1]} file begins as one", True, document in (b"%pdf-", b"<!doc")),
    ]
