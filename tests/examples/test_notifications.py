"""The example `notifications`: its README, which runs its command, the rows that it leaves; and its HTTP contract."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import uvicorn
from PIL import Image

from examples.notifications import jobs, server
from queue_worker.testing import Ack, run
from tests.helpers import wait_until
from tests.pages import ROOT, Reader

EXAMPLE = ROOT / "examples" / "notifications"


def test_the_command_of_the_readme_prints_what_it_shows_and_leaves_its_rows(
    dsn: str, db: psycopg.Connection[Any], tmp_path: Path
) -> None:
    reader = Reader(tmp_path, dsn, EXAMPLE_DATABASE_URL=dsn, TMPDIR=str(tmp_path))
    assert reader.read(EXAMPLE / "README.md") == 1
    assert reader.shown == 1
    delivered = db.execute("select message from public.delivered where queue = 'notifications' order by id").fetchall()
    assert delivered == [("in ten seconds",), ("in an hour",), ("happy new year",), ("your parcel",)]
    called = db.execute("select message from public.delivered where queue = 'calls' order by msg_id").fetchall()
    assert called == [(f"call {number}",) for number in range(6)]
    assert db.execute("select deliveries from public.reports").fetchall() == [(10,)]
    # What was cancelled or completed by hand is in the archive and was delivered to nobody.
    archived = db.execute("select message ->> 'message', headers ? 'cancelled_at' from pgmq.a_notifications").fetchall()
    assert {text: bool(cancelled) for text, cancelled in archived} == {
        **{message: False for (message,) in delivered},
        "told in person": False,
        "a mistake": True,
    }
    dead = db.execute("select queue, reason, payload from queue_worker.dead_letters order by queue").fetchall()
    assert [(queue, reason) for queue, reason, _ in dead] == [("calls", "attempts"), ("images", "rejected")]
    schedule = db.execute("select cron, timezone, enabled from queue_worker.schedules").fetchall()
    assert schedule == [("0 9 * * *", "Europe/Berlin", True)]
    left = db.execute("select sum(waiting + delayed + running) from queue_worker.queues").fetchone()
    assert left == (0,)
    # Nothing is left behind: no worker, no file.
    assert db.execute("select count(*) from queue_worker.workers where alive").fetchone() == (0,)
    assert list(reader.folder.iterdir()) == []
    assert list(tmp_path.glob("example-*")) == []


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, database: str) -> Iterator[httpx.Client]:
    """The server without a worker, so that what it enqueues stays to be looked at; and a client of it."""
    monkeypatch.setenv("DATABASE_URL", database)
    one = uvicorn.Server(uvicorn.Config(server.separate(), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=one.run)
    thread.start()
    try:
        wait_until(lambda: one.started or not thread.is_alive(), 30)
        port = one.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        one.should_exit = True
        thread.join(40)
    assert not thread.is_alive()


@pytest.fixture
def client(dsn: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    db.execute("select queue_worker.create_queue('notifications')")
    with serving(monkeypatch, dsn) as found:
        yield found


def test_a_message_is_enqueued_to_be_due_ten_seconds_later(client: httpx.Client, db: psycopg.Connection[Any]) -> None:
    answer = client.post("/schedule-notification", json={"message": "hello"})
    assert (answer.status_code, answer.json()) == (200, {"id": "1"})
    # `enqueued_at` is the time of the transaction, `vt` ten seconds after the call within it.
    rows = db.execute(
        "select message, vt - interval '10 seconds' between enqueued_at and clock_timestamp() from pgmq.q_notifications"
    ).fetchall()
    assert rows == [({"message": "hello"}, True)]


def test_options_of_the_request_are_options_of_the_message(client: httpx.Client, db: psycopg.Connection[Any]) -> None:
    at = {"message": "a", "at": "2031-01-01T09:00:00+01:00", "priority": 50}
    assert client.post("/schedule-notification", json=at).json() == {"id": "1"}
    hour = {"message": "b", "delay": "1h", "key": "k"}
    assert [client.post("/schedule-notification", json=hour).json()["id"] for _ in range(2)] == ["2", "2"]
    rows = db.execute(
        "select vt = '2031-01-01 08:00+00', vt - interval '1 hour' between enqueued_at and clock_timestamp(),"
        " (headers ->> 'priority')::int from pgmq.q_notifications order by msg_id"
    ).fetchall()
    assert rows == [(True, False, 50), (False, True, None)]


WRONG = {
    b"{}": "message",
    b'{"message": ""}': "message",
    b'{"message": 7}': "message",
    b"[]": "",
    b"no json": "",
    b"": "",
    b'{"message": "a", "delay": "soon"}': "delay",
    b'{"message": "a", "at": "2031-01-01T09:00:00"}': "run_at",
    b'{"message": "a", "delay": "1h", "at": "2031-01-01T09:00:00Z"}': "not both",
    b'{"message": "a", "priority": 101}': "priority",
    b'{"message": "a", "color": "red"}': "color",
}
"""Bodies, and a part of the error that they are answered with."""


def test_what_the_caller_did_wrong_is_400_with_an_error_and_enqueues_nothing(
    client: httpx.Client, db: psycopg.Connection[Any]
) -> None:
    for body, part in WRONG.items():
        answer = client.post("/schedule-notification", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, list(answer.json())) == (400, ["error"]), body
        assert part in answer.json()["error"], body
    assert db.execute("select count(*) from pgmq.q_notifications").fetchone() == (0,)


def test_cancel_and_complete_act_once_and_then_are_404(client: httpx.Client, db: psycopg.Connection[Any]) -> None:
    for act, msg_id in (("cancel", "1"), ("complete", "2")):
        assert client.post("/schedule-notification", json={"message": act}).json() == {"id": msg_id}
        assert client.post(f"/notifications/{msg_id}/{act}").json() == {"id": msg_id, "done": act}
        again = client.post(f"/notifications/{msg_id}/{act}")
        assert (again.status_code, list(again.json())) == (404, ["error"])
    assert client.post("/notifications/1/frame").status_code == 404
    assert client.post("/notifications/none/cancel").status_code == 400
    archived = db.execute("select message ->> 'message', headers ? 'cancelled_at' from pgmq.a_notifications").fetchall()
    assert {text: bool(cancelled) for text, cancelled in archived} == {"cancel": True, "complete": False}


def test_a_database_that_is_away_is_500_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # Bound and not listening: nobody else can begin to listen there.
    with contextlib.closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = f"postgresql://nobody@127.0.0.1:{nobody.getsockname()[1]}/none"
        with serving(monkeypatch, away) as client:
            sent = client.post("/schedule-notification", json={"message": "lost?"})
            cancelled = client.post("/notifications/1/cancel")
    assert (sent.status_code, list(sent.json())) == (500, ["error"])
    assert (cancelled.status_code, list(cancelled.json())) == (500, ["error"])


def test_a_queue_that_is_not_there_is_500_and_the_answer_says_nothing_of_it(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(monkeypatch, dsn) as client:
        answer = client.post("/schedule-notification", json={"message": "too early"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "it could not be scheduled: try again later"}


def test_a_picture_is_resized_in_its_proportions_and_a_second_run_writes_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGES", str(tmp_path))
    Image.linear_gradient("L").resize((300, 200)).save(tmp_path / "pier.png")
    for _ in range(2):
        assert run(jobs.app.processors["images"], {"name": "pier.png", "width": 90}).outcome == Ack()
        assert sorted(file.name for file in tmp_path.iterdir()) == ["pier-90.png", "pier.png"]
    with Image.open(tmp_path / "pier-90.png") as image:
        assert (image.format, image.size) == ("PNG", (90, 60))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"name": "nothing.png", "width": 90}, "rejected"),
        ({"name": "../pier.png", "width": 90}, "invalid"),
        ({"name": "pier.png", "width": 0}, "invalid"),
    ],
)
def test_a_picture_that_is_not_there_or_elsewhere_is_never_tried_again(
    payload: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGES", str(tmp_path / "images"))
    (tmp_path / "images").mkdir()
    Image.new("L", (3, 2)).save(tmp_path / "pier.png")
    assert run(jobs.app.processors["images"], payload).outcome.reason == reason
    assert list((tmp_path / "images").iterdir()) == []
