"""The POST that must not lead into our own network: real listeners on this machine that see no connection."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest
import trustme
from httpcore._backends.sync import SyncStream

from queue_worker import safe_http
from queue_worker.config import load_settings
from queue_worker.errors import ConfigError
from queue_worker.safe_http import Failed, Refused
from tests.hooks import Hooks

BODY = b'{"n": 1}'

# 127.0.0.1 as people hide it, and what else is no public server. {port}: that of the listener.
HIDDEN = (
    "127.0.0.1", "localhost", "LOCALHOST", "localhost.", "127.0.0.1.", "127.1", "127.0.1", "127.8.8.8", "0", "0.0.0.0",
    "2130706433", "017700000001", "0x7f000001", "0x7f.0.0.1", "0x7f.1", "0177.0.0.1", "0177.0.0.01", "127.0.0.0x1",
    "127.0.0.01", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]",
    "[2002:7f00:1::]", "[64:ff9b::7f00:1]", "[64:ff9b::127.0.0.1]", "[::1%25lo]", "①②⑦.⓪.⓪.①", "127。0。0。1",
    "user@127.0.0.1", "user:password@localhost", "example.com@127.0.0.1", "127.0.0.1%00.example.com", "%31%32%37.0.0.1",
)  # fmt: skip

INSIDE = (
    "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "169.254.169.254", "224.0.0.1",
    "240.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1", "fd00::1", "fe80::1", "fec0::1", "ff02::1",
    "2001:db8::1", "2001::1", "2002:a00:1::", "64:ff9b::a00:1", "64:ff9b:1::1", "::ffff:8.8.8.8", "::ffff:0:a00:1",
    "::10.0.0.1", "192.0.0.192", "192.88.99.1", "3fff::1",
)  # fmt: skip


@pytest.mark.parametrize("host", HIDDEN)
def test_no_form_of_this_machine_is_called(host: str) -> None:
    with Hooks() as hooks:
        for scheme in ("https", "http"):
            with pytest.raises((Refused, Failed)) as caught:
                safe_http.post(f"{scheme}://{host}:{hooks.port}/s3cret", BODY)
            assert "s3cret" not in str(caught.value)
        assert hooks.connections == 0


@pytest.mark.parametrize("address", INSIDE)
def test_no_address_inside_is_public(address: str) -> None:
    assert not safe_http.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "100.63.255.255", "2606:4700::1111", "64:ff9b::808:808"])
def test_servers_on_the_internet_are_public(address: str) -> None:
    assert safe_http.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "[::ffff:127.0.0.1]",
        "127.1",
        "[fe80::1]",
        "100.100.100.200",
        "[fd00:ec2::254]",
        "[fd20:ce::254]",
        "192.0.0.192",
    ],
)
def test_what_even_allow_private_leaves_closed(host: str) -> None:
    with Hooks() as hooks:
        with pytest.raises(Refused):
            safe_http.post(f"http://{host}:{hooks.port}/", BODY, allow_private=True)
        assert hooks.connections == 0


@pytest.mark.parametrize("url", ["ftp://example.com/", "//example.com/", "https:///x", "https://a b/", "https://a\\b/",
                                 "https://example.com:0/", "https://example.com:99999/", "https://[::1/", "x",
                                 "https://example.com/\r\nHost: x"])  # fmt: skip
def test_what_is_no_url_of_a_webhook(url: str) -> None:
    with pytest.raises(Refused):
        safe_http.parse(url, allow_private=True)


def test_allow_private_posts_to_this_machine() -> None:
    with Hooks() as hooks:
        assert safe_http.post(hooks.url + "?a=1", BODY, allow_private=True) == 200
        [hook] = hooks.got
        assert (hook.path, hook.host, hook.body) == ("/hook/s3cret-path?a=1", f"127.0.0.1:{hooks.port}", {"n": 1})


class Answers:
    """A name server that says something else each time: what rebinding is about."""

    def __init__(self, *answers: tuple[str, ...]) -> None:
        self.left = list(answers)

    def __call__(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        found = self.left.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]


def test_a_name_with_one_private_address_among_public_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with Hooks() as hooks:
        monkeypatch.setattr(socket, "getaddrinfo", Answers(("8.8.8.8", "127.0.0.1")))
        with pytest.raises(Refused, match=r"127\.0\.0\.1"):
            safe_http.post(f"https://rebind.example:{hooks.port}/", BODY)
        assert hooks.connections == 0


def test_the_name_is_resolved_once_and_the_certificate_is_for_the_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    authority = trustme.CA()
    context = safe_http.ssl.SSLContext(safe_http.ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.example").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    real = socket.getaddrinfo
    with Hooks(tls=context) as hooks:
        once = Answers(("127.0.0.1",))

        def look(host: Any, port: Any, *more: Any, **rest: Any) -> Any:
            # The address itself is looked up by the socket; the name may be asked for once.
            return real(host, port, *more, **rest) if host == "127.0.0.1" else once(host, port)

        monkeypatch.setattr(socket, "getaddrinfo", look)
        url = f"https://hooks.example:{hooks.port}/x"
        with pytest.raises(Failed, match="certificate is not valid"):
            safe_http.post(url, BODY, allow_private=True)
        assert hooks.got == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        once.left.append(("127.0.0.1",))
        assert safe_http.post(url, BODY, allow_private=True) == 200
        assert hooks.got[0].host == f"hooks.example:{hooks.port}"
        once.left.append(("127.0.0.1",))
        with pytest.raises(Failed, match="certificate is not valid"):
            safe_http.post(url.replace("hooks.example", "other.example"), BODY, allow_private=True)


def test_plain_http_never_goes_to_a_public_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Answers(("8.8.8.8",)))
    with pytest.raises(Refused, match="use https"):
        safe_http.post("http://public.example/", BODY, allow_private=True)


def test_redirects_errors_and_long_answers_are_failures() -> None:
    with Hooks() as hooks, Hooks() as inside:
        hooks.answers, hooks.headers = [302, 500], {"Location": inside.url}
        for status in (302, 500):
            with pytest.raises(Failed, match=f"answered {status}"):
                safe_http.post(hooks.url, BODY, allow_private=True)
        hooks.write = lambda out: out.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (safe_http.MOST_BYTES + 1))
        with pytest.raises(Failed, match="more than"):
            safe_http.post(hooks.url, BODY, allow_private=True)
        assert inside.connections == 0


def test_an_answer_that_drips_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_http, "TOTAL_SECONDS", 0.3)

    def drip(out: Any) -> None:
        import contextlib
        import time

        with contextlib.suppress(OSError):
            out.write(b"HTTP/1.1 200 OK\r\nX: ")
            while True:
                out.write(b"x")
                time.sleep(0.02)

    with Hooks() as hooks:
        hooks.write = drip
        with pytest.raises(Failed, match="connection failed"):
            safe_http.post(hooks.url, BODY, allow_private=True)


def test_a_connection_that_comes_up_as_its_time_runs_out_is_cut() -> None:
    streams = safe_http._Streams()
    streams.cut()
    near, far = socket.socketpair()
    with near, far:
        streams.note("connection.connect_tcp.complete", {"return_value": SyncStream(near)})
        assert far.recv(1) == b""


def test_the_environment_names_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with Hooks() as hooks, Hooks() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert safe_http.post(hooks.url, BODY, allow_private=True) == 200
        assert (hooks.connections, proxy.connections) == (1, 0)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"alert_webhook": "http://hooks.example/T0/s3cret"}, "QUEUE_WORKER_ALERT_WEBHOOK.*https://"),
        ({"alert_webhook": "https://0x7f000001/s3cret"}, "QUEUE_WORKER_ALERT_WEBHOOK.*usual form"),
        ({"alert_email_to": "ops@example.com,nobody"}, "QUEUE_WORKER_ALERT_EMAIL_TO.*addresses such as"),
        ({"alert_oldest_seconds": "soon"}, "QUEUE_WORKER_ALERT_OLDEST_SECONDS.*length of time"),
    ],
)
def test_bad_settings_name_their_variable_and_show_no_secret(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], line: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"QUEUE_WORKER_{name.upper()}", value)
    with pytest.raises(ConfigError, match=line) as caught:
        load_settings()
    assert "s3cret" not in str(caught.value)


def test_the_webhook_is_a_secret_and_spans_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_WORKER_ALERT_WEBHOOK", "https://hooks.example/T0/s3cret")
    monkeypatch.setenv("QUEUE_WORKER_ALERT_OLDEST_SECONDS", "1h30m")
    settings = load_settings()
    assert settings.alert_rules["oldest"] == 5400
    assert "s3cret" not in repr(settings) + str(settings.explain())
    assert "https://hooks.example/T0/s3cret" in settings.secret_values()
