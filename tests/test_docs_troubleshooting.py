"""docs/troubleshooting.md: each line that it quotes of a worker that does not start is one that the program writes."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import psycopg

from queue_worker.api import access, guard
from queue_worker.log_events import LINES
from queue_worker.transport import rest_errors
from tests.blackbox.program import Program
from tests.pages import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
START = PAGE.split("## The worker does not start")[1].split("\n## ")[0]
APP = "from queue_worker import App, Job\n\napp = App(builtins=False)\n\n"
HANDLER = "\n\n@app.processor({})\ndef work(job: Job[dict]) -> None: ...\n"
FILES = {
    "jobs": APP + HANDLER.format('"jobs"'),
    "taken": APP + HANDLER.format('"taken"'),
    "imports": "import a_module_that_is_not_there\n",
    "syntax": "def work(:\n",
    "other": "from queue_worker import App\n\napplication = App()\n",
    "option": APP + HANDLER.format('"jobs", concurency=2'),
    "twice": APP + HANDLER.format('"jobs"') + HANDLER.format('"jobs"'),
    "name": APP + HANDLER.format('"bad name!"'),
    "empty": APP,
}


def rows() -> list[str]:
    """The first cell of each row of the table of lines."""
    return re.findall(r"^\| `([^`]+)` \|", START, re.M)


def fits(row: str, line: str) -> bool:
    """Whether a line is what a row shows; `...` is what varies."""
    return re.fullmatch(re.escape(row).replace(r"\.\.\.", ".*"), line) is not None


def at(dsn: str, user: str | None = None, database: str | None = None) -> str:
    """The URL of another user or database of the same server."""
    url = re.sub(r"//[^@/]*@", f"//{user}@", dsn) if user else str(dsn)
    return re.sub(r"/\w+\?", f"/{database}?", url) if database else url


def without_a_database() -> list[tuple[dict[str, str], str]]:
    """Variables and options that are refused before the database is asked."""
    url = {"DATABASE_URL": "postgresql://127.0.0.1:1/nothing"}
    return [
        ({}, ""),
        ({"DB_USER": "me"}, ""),
        ({"SUPABASE_URL": "https://abc.supabase.co"}, ""),
        ({"SUPABASE_URL": "https://abc.supabase.co", "SUPABASE_SERVICE_ROLE_KEY": "sb_publishable_abc"}, ""),
        ({**url, "QUEUE_WORKER_EMBEDDED": "1"}, ""),
        ({"DATABASE_URL": "postgresql+asyncpg://127.0.0.1/x"}, ""),
        (url, "--app nowhere:app"),
        (url, "--app imports:app"),
        (url, "--app syntax:app"),
        (url, "--app other:app"),
        (url, "--app option:app"),
        (url, "--app twice:app"),
        (url, "--app name:app"),
        (url, "--app empty:app"),
        (url, "--app jobs:app -q nothing"),
        ({**url, "QUEUE_WORKER_CONCURRENCY": "many"}, ""),
        ({**url, "QUEUE_WORKER_QUEUES__EMAIL__BATCHSIZE": "5"}, ""),
        ({**url, "QUEUE_WORKER_GRACE_SECONDS": "40"}, ""),
        ({**url, "QUEUE_WORKER_HEARTBEAT_SECONDS": "50"}, ""),
        ({**url, "SMTP_HOST": "mail.example.com"}, ""),
        ({**url, "QUEUE_WORKER_PAYMENTS_SOURCE": "public.source"}, "-q payments"),
        ({**url, "QUEUE_WORKER_API_TOKEN": "short"}, ""),
        (url, "--app jobs:app --with-api --host 0.0.0.0"),
    ]


def provoke(cases: list[tuple[dict[str, str], str]]) -> set[str]:
    """Start a worker in each way, which must end with 78 and one line of the page; returns the rows that were seen."""
    for name, text in FILES.items():
        Path(f"{name}.py").write_text(text)
    seen = set()
    for variables, options in cases:
        done = Program(**variables)("start", *options.split())
        assert done.code == 78, (options, done.err)
        found = [row for row in rows() if fits(row, done.line)]
        assert found, f"the page has no row for {done.line!r}"
        seen |= set(found)
    return seen


def with_a_database(dsn: str, db: psycopg.Connection[Any], empty_dsn: str, stranger: str) -> set[str]:
    """Provoke what needs one; returns the rows that were seen."""
    jobs = "--app jobs:app"
    db.execute("select pgmq.create('taken')")
    db.execute(f"create role {stranger} login".encode())
    seen = provoke(
        [
            ({"DATABASE_URL": at(dsn, database="not_there")}, jobs),
            ({"DATABASE_URL": at(dsn, user="not_there")}, jobs),
            ({"DATABASE_URL": empty_dsn}, jobs),
            ({"DATABASE_URL": at(dsn, user=stranger)}, jobs),
            ({"DATABASE_URL": dsn}, f"{jobs} --max-memory 1MB"),
        ]
    )
    db.execute(f"grant queue_worker to {stranger}".encode())
    seen |= provoke([({"DATABASE_URL": at(dsn, user=stranger)}, "--app taken:app")])
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        seen |= provoke([({"DATABASE_URL": dsn}, f"{jobs} --with-api --port {busy.getsockname()[1]}")])
    db.execute("delete from queue_worker_data.migrations where name = 'pgmq'")
    return seen | provoke([({"DATABASE_URL": dsn}, jobs)])


def test_each_line_of_a_worker_that_does_not_start_is_written_by_one_that_does_not(
    dsn: str, db: psycopg.Connection[Any], empty_dsn: str
) -> None:
    stranger = f"stranger_{db.info.dbname}"
    try:
        seen = provoke(without_a_database()) | with_a_database(dsn, db, empty_dsn, stranger)
    finally:
        db.execute(f"drop role if exists {stranger}".encode())
    assert [row for row in rows() if row not in seen] == []


def test_what_it_quotes_of_the_log_the_api_and_the_dashboard_is_in_the_code() -> None:
    texts = [text for _, text in LINES.values()]
    for quoted in ("database lost, connecting again", "lease lost: the message may run elsewhere"):
        assert quoted in texts
        assert quoted in PAGE
    assert "started again: an earlier run ended without an outcome" in texts
    code = "".join(Path(str(module.__file__)).read_text() for module in (access, guard, rest_errors))
    answers = re.findall(r"^\| \d{3} `([^`]+)`", PAGE.split("## The dashboard")[1], re.M)
    assert len(answers) >= 6
    assert [answer for answer in answers if answer.removesuffix(": ...") not in code] == []
    for start in ("the API does not show schema", "the API knows no function", "is not accepted", "this needs a"):
        assert start in code
        assert start in PAGE
