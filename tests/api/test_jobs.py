"""Messages, queues, dead letters and schedules over HTTP, against the rows in the database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from queue_worker import App, Job
from queue_worker.api import create_api
from queue_worker.config import load_settings
from tests.api.served import Client, served
from tests.sql.engine import Engine


class Welcome(BaseModel):
    user_id: int


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    with served(dsn) as client:
        yield client


def bury(engine: Engine, payload: Any, error: str = "boom") -> int:
    msg_id = engine.send(payload)
    engine.rows("update pgmq.q_QUEUE set vt = 'epoch' where msg_id = %s", msg_id)
    (receipt,) = engine.take(1)
    engine.settle([], [(receipt, "dead", 0, "rejected", error)])
    return int(engine.value("select dead_id from queue_worker.dead_letters where msg_id = %s", msg_id))


def test_the_body_is_the_payload_and_options_are_parameters(client: Client, engine: Engine) -> None:
    answer = client.post("/api/jobs/work", json={"n": 1, "ж": "ö"}, params={"delay": "1h", "priority": 7})
    assert answer.status_code == 201
    body = answer.json()
    assert body == {"success": True, "jobId": body["jobId"], "queue": "work"}
    assert isinstance(body["jobId"], str)
    [row] = engine.rows("select message, headers, vt - now() as wait from pgmq.q_work where msg_id = %s", body["jobId"])
    assert row.message == {"n": 1, "ж": "ö"}
    assert row.headers["priority"] == 7
    assert timedelta(minutes=59) < row.wait <= timedelta(hours=1)


def test_a_batch_is_sent_whole_or_not_at_all(client: Client, engine: Engine) -> None:
    due = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
    good = [{"payload": {"n": 1}, "priority": 9}, {"payload": {"n": 2}, "run_at": due}, {"payload": {"n": 3}}]
    answer = client.post("/api/jobs/work/batch", json=good, params={"delay": "10m"})
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert body["jobId"] == body["jobIds"][0]
    assert engine.count("queue") == len(body["jobIds"]) == 3
    for bad in (
        [{"payload": {"n": 4}}, {"payload": 5}],
        [{"payload": {}}, {"priority": 3}],
        [{"payload": {}, "prioritty": 3}],
        [{"payload": {}, "priority": 1000}],
        [],
        {"payload": {}},
        [[]],
    ):
        answer = client.post("/api/jobs/work/batch", json=bad)
        assert answer.status_code == 422, bad
        assert answer.json()["error"]
    assert engine.count("queue") == 3


@pytest.mark.parametrize(
    "options",
    [
        {"delay": "soon"},
        {"delay": "1s", "run_at": "2030-01-01T00:00:00Z"},
        {"run_at": "2030-01-01T00:00:00"},
        {"priority": 101},
        {"priority": "x"},
        {"unique_mode": "perhaps"},
        {"max_attempts": 0},
        {"delay": "4000d"},
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_sent(client: Client, engine: Engine, options: dict[str, Any]) -> None:
    answer = client.post("/api/jobs/work", json={}, params=options)
    assert answer.status_code == 422
    assert any(name.removesuffix("_at") in answer.json()["error"] for name in options), answer.text
    assert engine.count("queue") == 0


def test_what_is_not_there_is_404_and_a_bad_name_is_422(client: Client, engine: Engine) -> None:
    for method, path in (
        ("POST", "/api/jobs/nothing"),
        ("GET", "/api/jobs/nothing/1"),
        ("GET", "/api/jobs/work/99"),
        ("DELETE", "/api/jobs/work/99"),
        ("GET", "/api/queues/nothing/status"),
        ("POST", "/api/queues/nothing/pause"),
        ("GET", "/api/queues/work/dead/9"),
        ("POST", "/api/schedules/nothing/run"),
        ("GET", "/nothing"),
    ):
        answer = client.request(method, path, json={} if method == "POST" else None)
        assert answer.status_code == 404, (path, answer.text)
        assert answer.json()["success"] is False
    for path in ("/api/jobs/A%20b/1", "/api/jobs/work/0", "/api/jobs/work/x", "/api/jobs/work/9223372036854775808"):
        assert client.get(path).status_code == 422, path
    assert engine.count("queue") == 0


def test_a_payload_is_checked_by_the_model_of_its_processor(dsn: str, engine: Engine) -> None:
    app = App()

    @app.processor("work")
    def work(job: Job[Welcome]) -> None:
        del job

    with served(dsn, app=app) as client:
        answer = client.post("/api/jobs/work", json={"user_id": "secret-text"})
        assert answer.status_code == 422
        assert "user_id" in answer.json()["error"]
        assert "secret-text" not in answer.text
        assert client.post("/api/jobs/work", json={"user_id": 7}).status_code == 201
    assert engine.count("queue") == 1


def test_one_message_is_found_in_every_state_with_its_history(client: Client, engine: Engine) -> None:
    msg_id = engine.send({"n": 1})

    def look() -> dict[str, Any]:
        found: dict[str, Any] = client.get(f"/api/jobs/work/{msg_id}").json()["data"]
        assert found["msg_id"] == str(msg_id)
        return found

    assert look()["state"] == "waiting"
    (receipt,) = engine.take(1)
    assert look()["state"] == "running"
    engine.settle([], [(receipt, "retry", 60, "", "boom")])
    assert look()["state"] == "delayed"
    assert [one["error"] for one in look()["failures"]] == ["boom"]
    engine.age()
    engine.settle(engine.take(1))
    assert look()["state"] == "archived"
    assert [one["msg_id"] for one in client.get("/api/jobs/work?state=completed").json()["data"]] == [str(msg_id)]
    found = client.get("/api/jobs/work", params={"state": "completed", "contains": '{"n": 2}'}).json()["data"]
    assert found == []
    dead_id = bury(engine, {"n": 2})
    assert client.get(f"/api/queues/work/dead/{dead_id}").json()["data"]["reason"] == "rejected"


def test_payloads_are_redacted_and_reading_one_in_full_leaves_a_trace(client: Client, engine: Engine) -> None:
    msg_id = engine.send({"card_number": "4242", "deep": [{"Password": "pw-1"}], "iban": "DE1", "note": "fine"})
    for path in ("/api/jobs/work", f"/api/jobs/work/{msg_id}"):
        text = client.get(path).text
        assert "fine" in text
        assert not any(secret in text for secret in ("4242", "pw-1", "DE1"))
    assert client.get("/api/audit").json()["data"] == []
    assert "4242" in client.get(f"/api/jobs/work/{msg_id}?full=true").text
    [entry] = client.get("/api/audit").json()["data"]
    assert (entry["action"], entry["queue"], entry["detail"]) == ("read_payload", "work", {"msg_id": msg_id})


def test_the_status_counts_what_was_done_also_when_it_is_deleted(client: Client, engine: Engine) -> None:
    engine.fill(5)
    engine.settle(engine.take(2))
    engine.settle(engine.take(1), on_success="delete")
    engine.take(1)
    engine.rows("select queue_worker.prune('work', 0)")
    engine.rows("select queue_worker.send('work', '{}', delay_seconds => 60)")
    data = client.get("/api/queues/work/status").json()["data"]
    assert {name: data[name] for name in ("created", "active", "total", "completed")} == {
        "created": 2,
        "active": 1,
        "total": 6,
        "completed": 3,
    }


def test_pause_resume_purge_and_cancel(client: Client, engine: Engine) -> None:
    engine.fill(3)
    assert client.post("/api/queues/work/pause", json={"reason": "lunch"}).status_code == 200
    assert client.get("/api/queues/work/status").json()["data"]["pause_reason"] == "lunch"
    assert engine.take(1) == []
    assert client.post("/api/queues/work/resume").status_code == 200
    assert client.delete("/api/jobs/work/1").json()["data"] == {"cancelled": "1"}
    assert client.post("/api/jobs/work/2/complete").json()["data"] == {"completed": "2"}
    assert client.post("/api/queues/work/purge").json()["data"] == {"purged": 1}
    assert engine.count("queue") == 0
    assert [row[0] for row in engine.rows("select action from queue_worker.audit order by audit_id")] == [
        "pause",
        "resume",
        "cancel",
        "complete",
        "purge",
    ]


def test_dead_letters_are_edited_redriven_and_discarded(client: Client, engine: Engine) -> None:
    first, second, third = (bury(engine, {"n": n}) for n in (1, 2, 3))
    found = client.get("/api/queues/work/dead").json()["data"]
    assert [one["dead_id"] for one in found] == [str(third), str(second), str(first)]
    answer = client.post(f"/api/queues/work/dead/{first}?retry=true", json={"n": 10})
    assert answer.json()["data"] == {"edited": str(first), "redriven": 1}
    assert engine.value("select message from pgmq.q_work") == {"n": 10}
    assert client.post("/api/queues/work/dead/discard", json={"ids": [str(second)]}).json()["data"] == {"discarded": 1}
    for body in ({"ids": "1"}, {"ids": ["x"]}, {"id": 1}, [1], {"ids": [True]}):
        assert client.post("/api/queues/work/dead/redrive", json=body).status_code == 422, body
    assert engine.count("dead") == 1
    assert client.post("/api/queues/work/dead/redrive").json()["data"] == {"redriven": 1}
    assert engine.count("dead") == 0


def test_schedules_are_made_run_and_removed(client: Client, engine: Engine) -> None:
    made = {"queue": "work", "cron": "0 7 * * 1", "payload": {"n": 1}, "timezone": "Europe/Berlin"}
    assert client.post("/api/schedules/weekly", json=made).status_code == 201
    [one] = client.get("/api/schedules").json()["data"]
    assert len(one["next_times"]) == 3
    sent = client.post("/api/schedules/weekly/run").json()["data"]["jobId"]
    assert engine.value("select message from pgmq.q_work where msg_id = %s", sent) == {"n": 1}
    assert client.post("/api/schedules/weekly/pause").status_code == 200
    assert client.get("/api/schedules").json()["data"][0]["next_times"] == []
    assert client.delete("/api/schedules/weekly").status_code == 200
    assert client.get("/api/schedules").json()["data"] == []
    for wrong in ({**made, "cron": "x"}, {**made, "timezone": "Mars"}, {"queue": "work"}, {**made, "cron": 5}, []):
        assert client.post("/api/schedules/weekly", json=wrong).status_code == 422, wrong


def test_it_can_be_mounted_into_an_application_of_ones_own(dsn: str, engine: Engine) -> None:
    api = create_api(settings=load_settings({"database_url": dsn}))
    site = FastAPI()
    site.mount("/queues", api)

    async def use() -> None:
        transport = httpx.ASGITransport(site)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.post("/queues/api/jobs/work", json={})).status_code == 201
            assert (await client.get("/queues/health")).json() == {"status": "ok"}

    try:
        asyncio.run(use())
    finally:
        api.state.queue_worker.backend.close()
    assert engine.count("queue") == 1
