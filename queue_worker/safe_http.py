"""One POST to an address that a setting names, which must not lead into our own network (SSRF).

The name is resolved once, every address of it is judged, and the connection goes to exactly one of those: a DNS answer
that changes in between changes nothing. Redirects are not followed, proxies of the environment are not used.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

if TYPE_CHECKING:
    import httpx

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

CONNECT_SECONDS = 5.0
READ_SECONDS = 5.0
TOTAL_SECONDS = 10.0
"""Longest that a POST takes after the name is resolved, whatever the other side does."""

MOST_BYTES = 65_536
"""Bytes of an answer that are read; a longer one is an error."""

_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*\Z", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_EMBEDDED = tuple(
    ipaddress.IPv6Network(text)
    # IPv4 in disguise: mapped, compatible, local NAT64, Teredo, 6to4.
    for text in ("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")
)
_RESERVED = tuple(
    map(
        ipaddress.ip_network,
        # Shared, protocol assignments, a former relay, documentation: Python's lists know these in late versions only.
        ("100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "3fff::/20"),
    )
)
_PRIVATE = tuple(
    map(
        ipaddress.ip_network,
        ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "::1/128", "fc00::/7"),
    )
)

_CREDENTIALS = tuple(map(ipaddress.ip_address, ("100.100.100.200", "fd00:ec2::254", "fd20:ce::254")))
"""Where clouds keep credentials, outside of link-local: Alibaba, AWS, Google."""


class Refused(Exception):
    """The address may not be called; nothing was sent. The text never holds the URL, whose path may be a secret."""


class Failed(Exception):
    """It was called, or tried, and did not take it: no connection, no valid certificate, an answer other than 2xx."""


class Target(NamedTuple):
    """A URL in parts. `pins` are the addresses it may be connected to."""

    scheme: str
    host: str
    port: int
    path: str
    pins: tuple[Address, ...] = ()


def post(url: str, body: bytes, *, allow_private: bool = False, headers: dict[str, str] | None = None) -> int:
    """POST `body` as JSON and return the status, which is 2xx.

    `allow_private`: loopback and private addresses too, and http:// to those. Raises Refused or Failed.
    """
    target = resolve(parse(url, allow_private=allow_private), allow_private=allow_private)
    wanted = {"Content-Type": "application/json", "User-Agent": "queue-worker", **(headers or {})}
    error: Failed | None = None
    end = time.monotonic() + TOTAL_SECONDS
    for pin in target.pins[:3]:
        if time.monotonic() > end:
            break
        try:
            return _send(target, pin, body, wanted, end - time.monotonic())
        except _NoConnection as failed:
            error = failed
    raise error or Failed("the host has no address")


def parse(url: str, *, allow_private: bool = False) -> Target:
    """Return the parts of a URL; raises Refused for one that no public webhook has."""
    try:
        parts: SplitResult = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Refused("it is no URL") from None
    if re.search(r"[\x00-\x20\x7f\\]", url) or not url.isascii():
        raise Refused("it holds spaces, control characters, backslashes or letters outside ASCII")
    if parts.scheme != "https" and not (parts.scheme == "http" and allow_private):
        raise Refused("it must begin with https://")
    if "@" in parts.netloc:
        raise Refused("it must not hold a user name")
    host = parts.hostname or ""
    if not _canonical(host):
        raise Refused("its host is neither a name nor an address in its usual form")
    if port == 0:
        raise Refused("its port is 0")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or (443 if parts.scheme == "https" else 80), path)


def resolve(target: Target, *, allow_private: bool = False) -> Target:
    """Return the target with the addresses of its host; raises Refused if one of them is none of a public server.

    Raises Failed where the name leads nowhere.
    """
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Failed("the name of its host cannot be resolved") from None
    pins = tuple(dict.fromkeys(ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found))
    inside = [pin for pin in pins if not is_public(pin)]
    if inside and not (allow_private and all(map(_may_be_allowed, inside))):
        raise Refused(f"its host leads to {inside[0]}, which is not a public address")
    if target.scheme == "http" and len(inside) < len(pins):
        raise Refused("http:// is for private addresses alone: use https://")
    return target._replace(pins=pins)


def is_public(address: Address) -> bool:
    """Whether an address belongs to a server on the internet, and to nothing of ours in whatever disguise."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
        if any(address in network for network in _EMBEDDED) or address.is_site_local:
            return False
    if any(address in network for network in _RESERVED):
        return False
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_loopback or address.is_link_local
        or address.is_private or address.is_unspecified
    )  # fmt: skip


def _may_be_allowed(address: Address) -> bool:
    """Whether `allow_private` is about an address. Not where clouds keep credentials: link-local, and some others."""
    return address not in _CREDENTIALS and any(address in network for network in _PRIVATE)


def _canonical(host: str) -> bool:
    """Whether a host is a name, or an address as `ipaddress` writes it; 127.1, 0x7f000001 and the like are neither."""
    try:
        return str(ipaddress.ip_address(host)) == host.lower()
    except ValueError:
        return bool(_NAME.match(host)) and not _NUMBER.fullmatch(host.rpartition(".")[2])


class _NoConnection(Failed):
    """Nothing was sent yet, so that another address of the host may be tried."""


def _send(target: Target, pin: Address, body: bytes, headers: dict[str, str], seconds: float) -> int:
    import httpx

    at = f"[{pin}]" if pin.version == 6 else str(pin)
    name = f"[{target.host}]" if ":" in target.host else target.host
    usual = {"https": 443, "http": 80}[target.scheme]
    headers = {**headers, "Host": name if target.port == usual else f"{name}:{target.port}"}
    timeout = httpx.Timeout(READ_SECONDS, connect=min(CONNECT_SECONDS, seconds))
    context = ssl.create_default_context()
    try:
        with (
            httpx.Client(verify=context, timeout=timeout, trust_env=False, follow_redirects=False) as client,
            _deadline(seconds) as streams,
        ):
            url = f"{target.scheme}://{at}:{target.port}{target.path}"
            extensions = {"sni_hostname": target.host, "trace": streams.note}
            return _status(
                client, client.build_request("POST", url, content=body, headers=headers, extensions=extensions)
            )
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise _NoConnection(_reason(error)) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Failed(_reason(error)) from None


def _status(client: httpx.Client, request: httpx.Request) -> int:
    answer = client.send(request, stream=True)
    try:
        size = 0
        for chunk in answer.iter_raw():
            size += len(chunk)
            if size > MOST_BYTES:
                raise Failed(f"its answer has more than {MOST_BYTES} bytes")
    finally:
        answer.close()
    if not answer.is_success:
        raise Failed(f"it answered {answer.status_code}")
    return answer.status_code


def _reason(error: Exception) -> str:
    """Return what went wrong without the URL."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not valid: {cause.verify_message}"
        cause = cause.__cause__ or cause.__context__
    return f"the connection failed: {type(error).__name__}"


class _Streams:
    """The connections of one request, for cutting them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Any] = []
        self._over = False

    def note(self, event: str, info: dict[str, Any]) -> None:
        """Take what httpcore's trace tells."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self._lock:
                self._open.append(info["return_value"])
                over = self._over
            if over:
                # It came up while the time ran out.
                self.cut()

    def cut(self) -> None:
        """End every read and write under way: a server that sends a byte now and then would never time out."""
        with self._lock:
            self._over = True
            for stream in self._open:
                with suppress(OSError, AttributeError):
                    stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


@contextmanager
def _deadline(seconds: float) -> Iterator[_Streams]:
    streams = _Streams()
    timer = threading.Timer(seconds, streams.cut)
    timer.daemon = True
    timer.start()
    try:
        yield streams
    finally:
        timer.cancel()
        timer.join(1.0)
