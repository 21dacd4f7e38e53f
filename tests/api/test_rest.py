"""The API of somebody who has nothing but a Supabase URL and a key: the same answers over REST."""

from __future__ import annotations

import pytest

from queue_worker.config import load_settings
from queue_worker.opening import open_database
from queue_worker.timings import Durations, Timings
from tests.api.served import served
from tests.api.test_metrics import samples
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


@pytest.mark.full
def test_metrics_are_told_and_read_over_rest(dsn: str, engine: Engine) -> None:
    durations, timings = Durations(), Timings()
    engine.fill(3)
    engine.settle(engine.take(3))
    with project(dsn) as made, served(None, **made.settings()) as client:
        database = open_database(load_settings(made.settings()))
        timings.begin([("work", durations)])
        try:
            durations.add([0.001, 0.3, 2000.0])
            timings.flush(database.transport())
        finally:
            timings.end()
            database.close()
        found = samples(client)
    assert found["queue_worker_messages_done_total", "work"] == 3
    assert found["queue_worker_pickup_seconds_count", "work"] == 3
    assert found["queue_worker_duration_seconds_count", "work"] == 3
    assert found["queue_worker_duration_seconds_sum", "work"] == 2000.301
    assert found["queue_worker_messages", "dead", "work"] == 0
