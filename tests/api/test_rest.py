"""The API of somebody who has nothing but a Supabase URL and a key: the same answers over REST."""

from __future__ import annotations

import pytest

from tests.api.served import served
from tests.sql.engine import Engine
from tests.supabase.project import project


@pytest.mark.full
def test_messages_queues_and_dead_letters_over_rest(dsn: str, engine: Engine) -> None:
    with project(dsn) as made, served(None, **made.settings()) as client:
        assert client.get("/ready").status_code == 200
        sent = client.post("/api/jobs/work", json={"n": 1}, params={"priority": 5}).json()
        assert client.get(f"/api/jobs/work/{sent['jobId']}").json()["data"]["state"] == "waiting"
        batch = client.post("/api/jobs/work/batch", json=[{"payload": {"n": 2}}, {"payload": {"n": 3}}]).json()
        assert len(batch["jobIds"]) == 2
        first, second = engine.take(2)
        engine.settle([first], [(second, "dead", 0, "rejected", "no")])
        [dead] = client.get("/api/queues/work/dead").json()["data"]
        assert dead["reason"] == "rejected"
        data = client.get("/api/queues/work/status").json()["data"]
        assert (data["created"], data["completed"], data["dead"]) == (1, 1, 1)
        [queue] = client.get("/api/queues").json()["data"]
        assert (queue["queue"], queue["completed"]) == ("work", 1)
        assert client.post(f"/api/queues/work/dead/{dead['dead_id']}?retry=true", json={"n": 4}).status_code == 200
        assert client.get("/api/queues/work/history").json()["data"][0]["done"] == 1
        assert client.post("/api/queues/work/pause", json={"reason": "x"}).status_code == 200
        assert client.delete(f"/api/jobs/work/{batch['jobIds'][1]}").status_code == 200
        assert client.post("/api/jobs/nothing", json={}).status_code == 404
        assert client.post("/api/jobs/work", json={}, params={"priority": 5, "delay": "4000d"}).status_code == 422
        assert client.get("/api/audit").status_code == 200
