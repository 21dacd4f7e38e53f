"""Attacks on the API: connections held open, sessions that last, guesses, values that break a page."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from queue_worker.api import access, create_api, server
from queue_worker.api.dashboard import live
from queue_worker.config import load_settings
from tests.api.served import READ_TOKEN, TOKEN, Client, served
from tests.api.test_access import guarded
from tests.helpers import wait_until
from tests.sql.engine import Engine

__all__ = ["guarded"]


def test_a_body_that_nobody_reads_holds_no_connection(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)
    with served(dsn, token="") as client:
        host, port = client.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 10) as asking:
            asking.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n")
            assert b" 200 " in asking.recv(10_000)
            # The first byte ends uvicorn's own patience with a connection that is kept alive.
            asking.sendall(b"{")
            rest = b"".join(iter(lambda: asking.recv(1000), b""))
            assert rest in (b"", b'{"status":"ok"}')


def test_whoever_does_not_read_its_answer_is_cut_off(dsn: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WRITE_SECONDS", 0.3)
    engine.rows(
        "insert into pgmq.q_work (vt, message) select now(), jsonb_build_object('x', repeat('x', 40000))"
        " from generate_series(1, 200)"
    )

    def closed(connection: socket.socket) -> bool:
        try:
            connection.sendall(b"\r\n")
        except ConnectionError:
            return True
        return False

    with served(dsn) as client:
        host, port = client.url.removeprefix("http://").split(":")
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.settimeout(10)
            deaf.connect((host, int(port)))
            deaf.sendall(b"GET /api/jobs/work?limit=200 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            wait_until(lambda: closed(deaf), 15)
        assert client.get("/health").status_code == 200


def session_of(client: Client, token: str) -> dict[str, str]:
    """The header of a browser that has logged in."""
    kept = client.post("/login", data={"token": token}).cookies
    return {"Cookie": "; ".join(f"{name}={value}" for name, value in kept.items())}


def test_a_session_that_was_logged_out_is_none_any_more(guarded: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "INTERVAL", 0.5)
    first, second = session_of(guarded, TOKEN), session_of(guarded, TOKEN)
    guarded.cookies.clear()
    with guarded.stream("GET", "/events", headers=first) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "retry: 3000"
        assert guarded.post("/logout", headers=first).status_code == 303
        assert guarded.get("/api/queues", headers=first).status_code == 401
        # What was open ends too, before it shows the next state.
        assert len([line for line in lines if line.startswith("event: state")]) <= 1
    assert guarded.get("/api/queues", headers=second).status_code == 200


def test_what_forms_send_along_is_no_session(guarded: Client) -> None:
    session = session_of(guarded, READ_TOKEN)["Cookie"].partition("=")[2]
    guarded.cookies.clear()
    parts = access.Access(
        load_settings({"database_url": "postgresql://x", "api_token": TOKEN, "api_read_token": READ_TOKEN})
    )
    assert parts.role_of_session(session) == "reader"
    crafted = f"csrf.{session}.{parts.csrf(session)}"
    assert guarded.get("/api/queues", headers={"Cookie": f"{access.COOKIE}={crafted}"}).status_code == 401


def test_a_reader_cannot_guess_what_is_redacted_by_searching_for_it(dsn: str, engine: Engine) -> None:
    engine.send({"cvc": "123", "user": 7})
    with served(dsn, token=READ_TOKEN) as client:
        path = "/api/jobs/work"
        assert len(client.get(path, params={"contains": '{"user": 7}'}).json()["data"]) == 1
        for guess in ('{"cvc": "123"}', '{"cvc": "124"}', '{"user": 7, "cvc": "123"}', '{"a": [{"password": ""}]}'):
            for state in ("waiting", "completed"):
                answer = client.get(path, params={"contains": guess, "state": state})
                assert answer.status_code == 403, guess
            page = client.get("/queues/work", params={"contains": guess}, headers={"Accept": "text/html"})
            assert "cannot be searched" in page.text
            assert "messages/1" not in page.text
        owner = {"Authorization": f"Bearer {TOKEN}"}
        assert len(client.get(path, params={"contains": '{"cvc": "123"}'}, headers=owner).json()["data"]) == 1


@pytest.mark.parametrize(
    "contains",
    ['{"a":NaN}', '{"a":1e999}', '{"a":"\\ud800"}', '{"a":"\\u0000"}', '{"a":' + "[" * 300 + "]" * 300 + "}"],
)
def test_a_search_for_what_cannot_be_stored_says_so(dsn: str, engine: Engine, contains: str) -> None:
    with served(dsn) as client:
        answer = client.get("/api/jobs/work", params={"contains": contains})
        page = client.get("/queues/work", params={"contains": contains})
    assert (answer.status_code, page.status_code) == (422, 200)
    assert "contains" in answer.json()["error"]


@pytest.mark.parametrize("time", ["infinity", "-infinity", "294000-01-01", "4000-01-01 BC"])
def test_a_message_whose_time_python_cannot_hold_hides_no_other(dsn: str, engine: Engine, time: str) -> None:
    odd, usual = engine.send({}), engine.send({})
    engine.rows("update pgmq.q_work set vt = %s, enqueued_at = %s where msg_id = %s", time, time, odd)
    with served(dsn) as client:
        assert client.get(f"/api/jobs/work/{odd}").json()["data"]["due_at"][:4] in ("9999", "0001")
        found = [
            row
            for state in ("waiting", "delayed")
            for row in client.get("/api/jobs/work", params={"state": state}).json()["data"]
        ]
        assert {row["msg_id"] for row in found} == {str(odd), str(usual)}
        for path in ("/queues/work", "/queues/work?tab=delayed", f"/queues/work/messages/{odd}", "/", "/metrics"):
            assert client.get(path).status_code == 200, path


def test_an_api_that_is_served_again_has_live_pages_again(dsn: str) -> None:
    api = create_api(settings=load_settings({"database_url": dsn}))
    parts = api.state.queue_worker

    async def serve(*, fail: bool = False) -> None:
        async with api.router.lifespan_context(api):
            assert not parts.closing.is_set()
            assert parts.backend.ready()
            if fail:
                raise ValueError

    for fail in (False, True):
        with contextlib.suppress(ValueError):
            asyncio.run(serve(fail=fail))
        assert parts.closing.is_set()
        assert parts.backend._database is None


def test_live_pages_leave_connections_to_others(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PAGES", 2)

    def opened(client: Client, pages: contextlib.ExitStack) -> bool:
        answer = pages.enter_context(client.stream("GET", "/events"))
        lines = answer.iter_lines()
        # It is closed with what reads it.
        pages.callback(lines.close)
        return next(lines) == "retry: 3000"

    with served(dsn) as client, contextlib.ExitStack() as all_pages:
        assert opened(client, all_pages)
        with contextlib.ExitStack() as second:
            assert opened(client, second)
            with client.stream("GET", "/events") as refused:
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "3")
            assert client.get("/health").status_code == 200
        wait_until(lambda: opened(client, all_pages))


def test_no_answer_leads_to_a_host_that_the_caller_named(guarded: Client) -> None:
    for method, path in (("POST", "/api/queues/work/purge/"), ("GET", "/login/"), ("GET", "/api/queues/")):
        answer = guarded.request(method, path, headers={"Host": "evil.example"})
        assert (answer.status_code, answer.headers.get("location")) == (404, None), path
