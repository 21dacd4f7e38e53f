"""Who may do what over HTTP, and what no route ever sees."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Route

from queue_worker.api import access, backend, create_api, guard, server
from queue_worker.config import load_settings
from tests.api.served import READ_TOKEN, TOKEN, Client, served
from tests.helpers import wait_until
from tests.sql.engine import Engine

OPEN = {"/health": 200, "/ready": 200, "/login": 200, "/favicon.ico": 200, "/static/1": 404}
"""What a browser needs before it has a session, and two words about the state."""


@pytest.fixture
def guarded(dsn: str) -> Iterator[Client]:
    """A server with tokens, and a client that has none."""
    with served(dsn, token="") as client:
        yield client


def every_route(dsn: str) -> list[tuple[str, str]]:
    api = create_api(settings=load_settings({"database_url": dsn, "api_token": TOKEN}))
    found = []
    for route in routes_below(api.routes):
        path = re.sub(r"{\w+(:\w+)?}", "1", route.path)
        found += [(method, path) for method in route.methods or ()]
    return found


def routes_below(routes: Any) -> Iterator[APIRoute | Route]:
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from routes_below(inner.routes)
        elif isinstance(route, (APIRoute, Route)):
            yield route


def test_every_route_wants_the_token_but_health_and_ready(dsn: str, guarded: Client) -> None:
    routes = every_route(dsn)
    assert len(routes) > 25
    some = {"/", "/events", "/metrics", "/api/jobs/1", "/queues/1/act/1", "/api/schedules/1/run"}
    assert {path for _, path in routes} >= some | OPEN.keys()
    for method, path in routes:
        expected = OPEN.get(path, 401) if method == "GET" else 401
        answer = guarded.request(method, path)
        assert answer.status_code == expected, (method, path, answer.text)
        if expected == 401:
            assert answer.headers["www-authenticate"] == "Bearer"
            assert guarded.request(method, f"{path}?token={TOKEN}&access_token={TOKEN}").status_code == 401


def test_ten_wrong_tokens_are_told_so_and_the_eleventh_has_to_wait(guarded: Client) -> None:
    wrong = {"Authorization": "Bearer not-the-token"}
    answers = [guarded.get("/api/queues", headers=wrong).status_code for _ in range(12)]
    assert answers == [401] * 10 + [429] * 2
    late = guarded.get("/api/queues", headers=wrong)
    assert late.headers["retry-after"] == "60"
    assert late.json()["error"] == "too many wrong tokens: wait a minute"
    # Whoever knows the token is not kept out by somebody who guesses from the same address.
    assert guarded.get("/api/queues", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize("token", ["", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "ü" * 20, "\x80\xff"])
def test_a_token_that_is_not_quite_right_is_wrong(token: str) -> None:
    known = access.Access(load_settings({"database_url": "postgresql://x", "api_token": TOKEN}))
    assert known.role_of(token) is None
    assert known.role_of(TOKEN) == "operator"


def test_a_session_is_bound_to_its_tokens_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    one = access.Access(load_settings({"database_url": "postgresql://x", "api_token": TOKEN}))
    other = access.Access(load_settings({"database_url": "postgresql://x", "api_token": TOKEN + "2"}))
    cookie = one.session("reader")
    assert one.role_of_session(cookie) == "reader"
    assert other.role_of_session(cookie) is None
    assert one.role_of_session(cookie.replace("reader", "operator")) is None
    assert one.role_of_session("") is None
    later = time.time() + access.SESSION_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert one.role_of_session(cookie) is None


def test_a_read_only_token_looks_and_changes_nothing(dsn: str, engine: Engine) -> None:
    msg_id = engine.send({"password": "geheim"})
    with served(dsn, token=READ_TOKEN) as reader:
        assert reader.get("/api/queues/work/status").json()["data"]["waiting"] == 1
        assert "geheim" not in reader.get(f"/api/jobs/work/{msg_id}").text
        for method, path in (
            ("POST", "/api/jobs/work"),
            ("POST", "/api/queues/work/purge"),
            ("POST", "/api/queues/work/pause"),
            ("DELETE", f"/api/jobs/work/{msg_id}"),
            ("POST", "/api/queues/work/dead/discard"),
            ("DELETE", "/api/schedules/x"),
        ):
            answer = reader.request(method, path, json={} if method == "POST" else None)
            assert (answer.status_code, answer.json()["error"]) == (403, "this token is read-only")
        assert reader.get(f"/api/jobs/work/{msg_id}?full=true").status_code == 403
    assert engine.count("queue") == 1


def test_without_a_token_only_names_of_this_machine_are_served(dsn: str) -> None:
    with served(dsn) as client:
        port = client.url.rpartition(":")[2]
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "", "127.0.0.2"):
            assert client.get("/api/queues", headers={"Host": host}).status_code == 421, host
        for host in (f"localhost:{port}", f"127.0.0.1:{port}", "[::1]:1", "LOCALHOST"):
            assert client.get("/api/queues", headers={"Host": host}).status_code == 200, host


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"])
def test_without_a_token_nobody_is_served_through_a_proxy(dsn: str, header: str) -> None:
    with served(dsn) as client:
        answer = client.get("/api/queues", headers={header: "203.0.113.7"})
    assert answer.status_code == 403
    assert "QUEUE_WORKER_API_TOKEN" in answer.json()["error"]


def test_without_a_token_a_caller_from_elsewhere_is_refused_whatever_host_it_names(dsn: str) -> None:
    api = create_api(settings=load_settings({"database_url": dsn}))

    async def ask(address: str) -> int:
        transport = httpx.ASGITransport(api, client=(address, 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/health")).status_code

    assert asyncio.run(ask("127.0.0.1")) == 200
    assert asyncio.run(ask("203.0.113.7")) == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({}, 201),
    ],
)
def test_a_form_of_another_site_changes_nothing(dsn: str, engine: Engine, headers: dict[str, str], status: int) -> None:
    with served(dsn) as client:
        answer = client.post("/api/jobs/work", content="{}", headers={**headers, "Content-Type": "text/plain"})
    assert answer.status_code == status
    assert engine.count("queue") == (status == 201)
    assert "access-control-allow-origin" not in answer.headers


def test_what_is_too_large_too_deep_or_no_json_reaches_no_queue(dsn: str, engine: Engine) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 32_768

    large = b'{"x": "' + b"x" * guard.MAX_BODY + b'"}'
    deep = b'{"a":' * 65 + b"1" + b"}" * 65
    with served(dsn) as client:
        path = "/api/jobs/work"
        assert client.post(path, content=large).status_code == 413
        assert client.post(path, content=pieces()).status_code == 413
        for body in (
            deep,
            b"[" * 100_000,
            b"{",
            b"\xff",
            b'{"a": NaN}',
            b"[]",
            b'"x"',
            b"",
            b'{"a":"\\u0000"}',
            b'{"\\ud800":1}',
        ):
            answer = client.post(path, content=body)
            assert answer.status_code == 422, body[:20]
            assert answer.json()["success"] is False
        assert client.post(path, content=b'{"a":' * 60 + b"1" + b"}" * 60).status_code == 201
        for reason in (b'{"reason": "\\u0000"}', b'{"reason": "\\ud800"}', b'{"reason": 5}'):
            assert client.post("/api/queues/work/pause", content=reason).status_code == 422
        for odd in ("/api/schedules/a%00b/run", "/api/jobs/a%00b/1", "/api/jobs/work?contains=%00", "/%ff"):
            assert client.request("POST" if "run" in odd else "GET", odd).status_code in (404, 422), odd
        assert client.post(path, json={}, params={"unique_key": "a\0b"}).status_code == 422
    assert engine.count("queue") == 1


def test_whoever_sends_slowly_is_not_waited_for(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)
    with served(dsn) as client:
        host, port = client.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 10) as silent:
            assert silent.recv(10) == b""
        with socket.create_connection((host, int(port)), 10) as head:
            head.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ")
            assert head.recv(10) == b""
        with socket.create_connection((host, int(port)), 10) as body:
            body.sendall(b"POST /api/jobs/work HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
            assert b" 408 " in body.recv(1000)
        assert client.get("/health").json() == {"status": "ok"}


def test_answers_carry_the_headers_that_keep_a_page_safe(dsn: str) -> None:
    with served(dsn) as client:
        headers = client.get("/api/queues").headers
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy
    for part in ("default-src 'self'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"):
        assert part in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


def test_an_error_of_the_database_is_told_without_its_words(dsn: str, db: psycopg.Connection[Any]) -> None:
    db.execute(
        "create or replace function queue_worker_data.snapshot(minutes int default 60) returns jsonb language plpgsql"
        " as $$ begin raise exception 'secret table is broken' using errcode = 'XX000'; end $$"
    )
    with served(dsn) as client:
        answer = client.get("/api/queues")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert answer.json()["request"] == answer.headers["x-request-id"]


def test_a_thousand_callers_who_guess_are_not_all_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_CALLERS_REMEMBERED", 50)
    known = access.Access(load_settings({"database_url": "postgresql://x", "api_token": TOKEN}))
    for number in range(1000):
        assert known.refuse(str(number)).status == 401
    assert len(known._wrong) == 50
    wait_until(lambda: known.refuse("999").status == 429)


def test_mounted_pages_and_their_session_stay_below_their_path(dsn: str, engine: Engine) -> None:
    api = create_api(settings=load_settings({"database_url": dsn, "api_token": TOKEN}))
    site = FastAPI()
    site.mount("/ops/queues", api)

    async def use() -> None:
        transport = httpx.ASGITransport(site)
        page = {"Accept": "text/html"}
        async with httpx.AsyncClient(transport=transport, base_url="https://example.com") as client:
            answer = await client.get("/ops/queues/", headers=page)
            assert (answer.status_code, answer.headers["location"]) == (303, "/ops/queues/login")
            answer = await client.post("/ops/queues/login", data={"token": TOKEN}, headers=page)
            assert "Path=/ops/queues;" in answer.headers["set-cookie"]
            answer = await client.get(answer.headers["location"], headers=page)
            links = re.findall(r'(?:href|src|action|data-events)="([^"]+)"', answer.text)
            assert "/ops/queues/queues/work" in links
            assert [link for link in links if not link.startswith("/ops/queues/")] == []
            assert (await client.get("/ops/queues/static/app.css")).status_code == 200

    try:
        asyncio.run(use())
    finally:
        api.state.queue_worker.backend.close()


def test_a_query_that_takes_too_long_is_ended_in_the_database_too(
    dsn: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "LONGEST_CALL", 1.0)
    db.execute(
        "create or replace function queue_worker_data.snapshot(minutes int default 60) returns jsonb language plpgsql"
        " as $$ begin perform pg_sleep(60); return '{}'; end $$"
    )
    with served(dsn) as client:
        answer = client.get("/api/queues")
        assert answer.status_code == 503
        assert answer.json()["error"] == "the database took too long"
        asleep = "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"
        assert db.execute(asleep).fetchone() == (0,)
        assert client.get("/api/schedules").status_code == 200
