"""The commands `schedule ...` on a real database."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from tests.blackbox.program import Program
from tests.helpers import wait_until

pytestmark = pytest.mark.conformance(hosted=True)


@pytest.fixture
def reports(program: Program, db: psycopg.Connection[tuple]) -> Program:
    """The program on a database with a queue `reports`."""
    db.execute("select queue_worker.create_queue('reports')")
    return program


def test_from_add_to_remove(reports: Program, db: psycopg.Connection[tuple]) -> None:
    added = reports.ok(
        "schedule", "add", "daily", "reports", '{"report": "sales"}', "--cron", "0 9 * * 1-5",
        "--timezone", "Europe/Berlin", "--misfire", "skip", "--max-attempts", "3", "--timeout", "2m", "--next", "3",
    )  # fmt: skip
    first, *times = added.out.splitlines()
    assert first == "schedule 'daily' sends to queue 'reports': 0 9 * * 1-5 (Europe/Berlin)"
    assert [time[15:23] for time in times] == ["09:00:00"] * 3
    assert not {time[:3] for time in times} & {"Sat", "Sun"}
    [row] = reports.ok("schedule", "list", "--json").json
    assert {key: row[key] for key in ("name", "queue", "cron", "timezone", "misfire", "payload", "options")} == {
        "name": "daily", "queue": "reports", "cron": "0 9 * * 1-5", "timezone": "Europe/Berlin", "misfire": "skip",
        "payload": {"report": "sales"}, "options": {"max_attempts": 3, "timeout_seconds": 120},
    }  # fmt: skip
    sent = reports.ok("schedule", "run", "daily", "--json").json
    assert sent == {"name": "daily", "queue": "reports", "id": sent["id"]}
    assert db.execute("select message, headers ->> 'schedule' from pgmq.q_reports").fetchall() == [
        ({"report": "sales"}, "daily")
    ]
    assert reports.ok("schedule", "run", "daily").out.strip() == str(int(sent["id"]) + 1)
    assert "queue-worker schedule resume daily" in reports.ok("schedule", "pause", "daily").out
    assert reports.ok("schedule", "list").out.splitlines()[1].split()[-1] == "paused"
    assert reports.ok("schedule", "resume", "daily", "--json").json == {"name": "daily", "enabled": True}
    assert reports.ok("schedule", "list").out.splitlines()[1].split()[-1] == "active"
    assert reports.ok("schedule", "remove", "daily", "--json").json == {"name": "daily", "removed": True}
    assert reports.ok("schedule", "list").out.startswith("there are no schedules")
    assert reports.ok("schedule", "list", "--json").json == []


def test_an_interval_shows_its_next_times_from_the_clock_of_the_database(
    reports: Program, db: psycopg.Connection[tuple]
) -> None:
    added = reports.ok("schedule", "add", "often", "reports", "--every", "1h30m", "--next", "2", "--json").json
    assert added["cron"] == "every 5400s"
    first, second = map(datetime.fromisoformat, added["next"])
    assert second - first == timedelta(minutes=90)
    [(start,)] = db.execute("select from_at from queue_worker.schedules").fetchall()
    assert first == start + timedelta(minutes=90)
    # The same once more: still counted from its first edit.
    db.execute("update queue_worker_data.schedules set from_at = from_at - interval '1 hour'")
    again = reports.ok("schedule", "add", "often", "reports", "--every", "90m", "--next", "1", "--json").json
    assert datetime.fromisoformat(again["next"][0]) == first - timedelta(hours=1)


def test_an_error_is_shown_in_the_list(reports: Program, db: psycopg.Connection[tuple]) -> None:
    db.execute("select queue_worker.schedule('bad', 'reports', '61 * * * *', '{}')")
    Path("jobs.py").write_text(
        "from queue_worker import App\n"
        "app = App(builtins=False)\n"
        "@app.schedule('0 9 * * *', queue='reports', name='coded', payload={'report': 'sales'})\n"
        "@app.processor('reports')\n"
        "def reports(job):\n"
        "    print('report', job.payload, flush=True)\n"
    )
    with reports.running("--app", "jobs:app") as worker:
        worker.ready()
        wait_until(lambda: "schedule failed" in worker.log, 20, lambda: worker.log)
        wait_until(lambda: db.execute("select 1 from queue_worker.schedules where name = 'coded'").fetchone(), 20)
        db.execute("select queue_worker.schedule('second', 'reports', 'every 1s', '{\"report\": \"now\"}')")
        wait_until(lambda: "report {'report': 'now'}" in worker.log, 20, lambda: worker.log)
        worker.signal()
        assert worker.end() == 0
    assert "scheduled message sent" in worker.log
    lines = reports.ok("schedule", "list").out.splitlines()
    assert lines[1].endswith("error: '61 * * * *': minute '61' is not 0 to 59")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["s", "reports"], "give --cron '0 9 * * 1-5' or --every 10m, one of the two"),
        (
            ["s", "reports", "--cron", "@daily", "--every", "1m"],
            "give --cron '0 9 * * 1-5' or --every 10m, one of the two",
        ),
        (["s", "reports", "--cron", "61 * * * *"], "'61 * * * *': minute '61' is not 0 to 59"),
        (
            ["s", "reports", "--cron", "@daily", "--timezone", "Mars"],
            "time zone 'Mars' is not known; use a name such as",
        ),
        (["s", "reports", "--cron", "@daily", "--misfire", "never"], "misfire 'never' is not one of skip, once, all"),
        (["s", "reports", "[1]", "--cron", "@daily"], "the payload must be a JSON object"),
        (["s", "report", "--cron", "@daily"], "queue 'report' does not exist; did you mean reports?"),
        (["s", "reports", "--every", "10 parsecs"], "'every 10 parsecs': write an interval such as"),
        (["s", "reports", "--cron", "@daily", "--max-attempts", "0"], "schedule 's': max_attempts must be 1 to 1000"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_made(
    reports: Program, db: psycopg.Connection[tuple], arguments: list[str], line: str
) -> None:
    done = reports("schedule", "add", *arguments)
    assert done.code == 2
    assert done.line.startswith(line)
    assert db.execute("select name from queue_worker.schedules").fetchall() == []


@pytest.mark.parametrize("command", ["remove", "run", "pause", "resume"])
def test_an_unknown_name_is_told_with_those_that_are_there(reports: Program, command: str) -> None:
    reports.ok("schedule", "add", "daily", "reports", "--cron", "@daily")
    done = reports("schedule", command, "dayly")
    assert done.code == 2
    assert done.line == "schedule 'dayly' does not exist; did you mean daily? schedules here: daily"
