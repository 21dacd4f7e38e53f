"""Errors that carry an HTTP response: real ones of real clients, and those that only look like one."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import requests
import stripe

from queue_worker import errors
from queue_worker.config import QueueOptions
from queue_worker.http_errors import asked_pause
from queue_worker.message import Message, Receipt, Release, Retry
from queue_worker.retry import RetryPolicy

MESSAGE = Message("mine", Receipt(1, 1, None), "{}")


def outcome(error: BaseException, **options: Any) -> Any:
    return RetryPolicy(QueueOptions(**options)).outcome_for(MESSAGE, error)


class _Answers(BaseHTTPRequestHandler):
    """`GET /503/120` answers 503 with `Retry-After: 120`; without a third part it has no such header."""

    def do_GET(self) -> None:
        _, status, *seconds = self.path.split("/")
        self.send_response(int(status))
        if seconds:
            self.send_header("Retry-After", seconds[0])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def by_httpx(url: str) -> None:
    httpx.get(url, trust_env=False).raise_for_status()


def by_requests(url: str) -> None:
    with requests.Session() as session:
        session.trust_env = False
        session.get(url).raise_for_status()


def by_urllib(url: str) -> None:
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url).close()


@pytest.mark.parametrize("get", [by_httpx, by_requests, by_urllib])
def test_the_errors_of_http_clients_are_understood(server: str, get: Any) -> None:
    def error_of(path: str) -> Exception:
        try:
            get(server + path)
        except Exception as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            return error
        raise AssertionError("no error")

    assert asked_pause(error_of("/503/120")) == (503, 120)
    assert asked_pause(error_of("/429/7")) == (429, 7)
    assert asked_pause(error_of("/503")) is None
    assert asked_pause(error_of("/500/120")) is None
    assert asked_pause(error_of("/503/soon")) is None


def test_stripe_is_understood() -> None:
    limited = stripe.RateLimitError("slow down", http_status=429, headers={"Retry-After": "20"})
    assert asked_pause(limited) == (429, 20)
    assert asked_pause(stripe.RateLimitError("slow down", http_status=429, headers={})) is None


class Answer:
    def __init__(self, status: Any, headers: Any) -> None:
        self.status_code = status
        self.headers = headers


class Refused(Exception):
    def __init__(self, status: Any = 503, headers: Any = None, response: Any = None) -> None:
        super().__init__("refused")
        self.response = response if response is not None else Answer(status, headers)


def refused(value: str, **headers: str) -> Refused:
    return Refused(headers={"retry-AFTER": value, **headers})


def test_botocore_and_http_status_and_bytes_are_understood() -> None:
    answer = {"ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": {"retry-after": "4"}}}
    assert asked_pause(Refused(response=answer)) == (503, 4)
    assert asked_pause(Refused(HTTPStatus.TOO_MANY_REQUESTS, {b"Retry-After": b"5"})) == (429, 5)


def test_a_cause_is_looked_at_but_not_behind_a_steering_exception() -> None:
    error = ValueError("the shop cannot be reached")
    error.__cause__ = refused("9")
    assert asked_pause(error) == (503, 9)
    assert outcome(error) == Release(9, 9, "HTTP 503: ValueError: the shop cannot be reached")
    # Whoever steers by hand has seen it.
    steering = errors.Retry("later", delay=3)
    steering.__cause__ = error
    assert outcome(steering) == Retry(3, "later")


def test_a_ring_of_causes_ends() -> None:
    one, two = ValueError(), ValueError()
    one.__cause__, two.__cause__ = two, one
    assert asked_pause(one) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 1), ("1", 1), (" 30 ", 30), ("3600", 3600), ("999999999", 3600), ("1.5", 1.5),
        ("", None), ("-5", None), ("soon", None), ("1e3", None), ("9" * 5000, None), ("٣", None), ("1, 2", None),
    ],
)  # fmt: skip
def test_seconds_are_bounded_and_nonsense_is_no_header(value: str, seconds: float | None) -> None:
    asked = asked_pause(refused(value))
    assert (asked and asked.seconds) == seconds


@pytest.mark.parametrize(
    "form",
    ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"],
    ids=["IMF-fixdate", "RFC 850", "asctime"],
)
def test_every_form_of_an_http_date_is_read(form: str) -> None:
    sent = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
    until = (sent + timedelta(seconds=90)).strftime(form)
    asked = asked_pause(refused(until, Date=format_datetime(sent, usegmt=True)))
    assert asked == (503, 90)


def test_a_date_without_the_senders_clock_is_measured_by_ours() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True)
    asked = asked_pause(refused(later))
    assert asked is not None
    assert 1 < asked.seconds <= 600
    past = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    assert asked_pause(refused(past)) == (503, 1)


class Spiteful(Exception):
    @property
    def response(self) -> Any:
        raise RuntimeError("not read yet")

    @property
    def status(self) -> Any:
        raise RuntimeError("nor this")


@pytest.mark.parametrize(
    "error",
    [
        Spiteful(),
        Refused(True, {"Retry-After": "5"}),
        Refused("503", {"Retry-After": "5"}),
        Refused(503, ["Retry-After"]),
        Refused(503, {"Retry-After": 5}),
        Refused(503, {5: 5}),
        Refused(response={}),
        Refused(response={"ResponseMetadata": 5}),
        SystemExit(503),
    ],
    ids=lambda error: f"{error!r:.30}",
)
def test_what_only_looks_like_a_response_is_a_failure_like_any_other(error: BaseException) -> None:
    assert asked_pause(error) is None
    assert isinstance(outcome(error), Retry)


# ------------------------------------------------------------------------------------------ what it leads to


def test_a_pause_is_a_release_and_nobody_is_charged() -> None:
    assert outcome(refused("30")) == Release(30, 30, "HTTP 503: Refused: refused")
    assert outcome(refused("30"), max_attempts=1) == Release(30, 30, "HTTP 503: Refused: refused")


def test_without_the_header_it_is_charged() -> None:
    assert isinstance(outcome(Refused(503, {"Server": "x"})), Retry)


def test_a_queue_may_take_it_as_a_failure() -> None:
    assert isinstance(outcome(refused("30"), retry_after=False), Retry)


def test_unavailable_pauses_for_as_long_as_it_says_or_the_breaker_does() -> None:
    assert outcome(errors.Unavailable("down", delay=30)) == Release(30, 30, "down")
    assert outcome(errors.Unavailable("down"), breaker_seconds=25) == Release(25, 25, "down")
    assert outcome(errors.Unavailable("down", delay=0)) == Release(1, 1, "down")
    assert outcome(errors.Unavailable("down", delay=10**6)) == Release(3600, 3600, "down")
    assert outcome(errors.Unavailable("down", delay=-1), breaker_seconds=25) == Release(25, 25, "down")
    assert outcome(errors.Unavailable("down", delay=30), retry_after=False, max_attempts=1) == Release(30, 30, "down")


def test_no_secret_stands_in_the_reason() -> None:
    found = outcome(errors.Unavailable("password=hunter2-word"))
    assert "hunter2" not in found.reason
