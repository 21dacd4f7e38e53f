"""Requests to PostgREST through supabase-py's client: own time limits, verified TLS, and no secret in any text."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from queue_worker.errors import TransportUnavailable
from queue_worker.schema_name import current
from queue_worker.transport.rest_errors import explain, exposed_in, unreached

if TYPE_CHECKING:
    import httpx
    from postgrest import SyncPostgrestClient

CONNECT_SECONDS = 2.0
PROBE_SECONDS = 3.0
"""How long an answer is waited for while the API is away: what came back is then found soon."""

_LONGEST_RETRY_AFTER = 30.0
_CONNECTIONS = 20


@dataclass
class _Session:
    """A client and how many threads use it; a retired one is closed by the last that leaves."""

    client: SyncPostgrestClient
    users: int = 0
    retired: bool = False


class RestClient:
    """One HTTP client, for any number of threads; opens connections on first use.

    `url` is the project's, `key` a service-role JWT or `sb_secret_...`, `answer_seconds` the longest wait.
    """

    def __init__(self, url: str, key: str, *, schema: str | None = None, answer_seconds: float = 10.0) -> None:
        self.schema = schema or current()
        self.host = urlsplit(url).netloc.rpartition("@")[2]
        self._url = url.rstrip("/")
        self._key = key
        self._answer_seconds = answer_seconds
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._away = False
        self._not_before = 0.0
        self._answered = threading.local()

    def __repr__(self) -> str:
        return f"RestClient({self.host})"

    def call(self, function: str, arguments: Mapping[str, Any], request_key: str | None) -> Any:
        """Ask SQL `call` once; returns its answer.

        Raises TransportUnavailable (it may have committed) or CallRefused.
        """
        import httpx
        from postgrest.exceptions import APIError

        # The server has said how long it wants to be left alone.
        if (left := self._not_before - time.monotonic()) > 0:
            raise TransportUnavailable(f"the API asked for a pause of {left:.0f} s ({self.host})")
        body: dict[str, Any] = {"function": function, "arguments": dict(arguments), "request_key": request_key}
        with self._used() as client:
            self._answered.status, self._answered.retry_after = 0, None
            try:
                answer = client.rpc("call", body).execute().data
            except APIError as error:
                status = int(self._answered.status)
                failure = explain(
                    str(error.code or ""), error.message or "", str(error.hint or ""), status, self.schema
                )
                self._heed(status)
                self._found(isinstance(failure, TransportUnavailable))
                raise failure from None
            except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
                # Connections that lie idle may be as dead as this one.
                self._found(True, renew=True)
                raise unreached(error, self.host) from None
        self._found(False)
        return answer

    def exposed_schemas(self) -> list[str] | None:
        """Return which schemas the API shows, as it says when it is asked for one that nobody has; None: it does not.

        Raises TransportUnavailable, or CallRefused for a wrong certificate.
        """
        import httpx

        try:
            with self._used() as client:
                headers = {"Content-Profile": "queue_worker asks what there is"}
                answer = client.session.post(f"{self._url}/rest/v1/rpc/call", json={}, headers=headers).json()
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise unreached(error, self.host) from None
        except ValueError:
            return None
        return exposed_in(answer) if isinstance(answer, dict) else None

    def close(self) -> None:
        """Close the connections, those in use when their calls have ended; the next call opens new ones."""
        with self._lock:
            session, self._session = self._session, None
            if session is not None:
                session.retired = True
                unused = session.users == 0
        if session is not None and unused:
            session.client.session.close()

    @contextmanager
    def _used(self) -> Iterator[SyncPostgrestClient]:
        with self._lock:
            if self._session is None:
                self._session = _Session(self._make())
            session = self._session
            session.users += 1
        try:
            yield session.client
        finally:
            with self._lock:
                session.users -= 1
                over = session.retired and session.users == 0
            if over:
                session.client.session.close()

    def _found(self, away: bool, *, renew: bool = False) -> None:
        # The time limits of a client are fixed when it is made.
        if away != self._away or renew:
            self._away = away
            self.close()

    def _heed(self, status: int) -> None:
        if status in (429, 503) and self._answered.retry_after:
            try:
                seconds = float(self._answered.retry_after)
            except ValueError:
                # RFC 9110 allows a date too; the loops' own pause is as good.
                return
            self._not_before = time.monotonic() + min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)

    def _make(self) -> SyncPostgrestClient:
        import httpx
        from postgrest import SyncPostgrestClient

        answer = min(self._answer_seconds, PROBE_SECONDS) if self._away else self._answer_seconds
        # The gateway of Supabase wants the key in both places, as all its clients send it.
        headers = {"apikey": self._key, "Authorization": f"Bearer {self._key}"}
        session = httpx.Client(
            headers=headers,
            # HTTP/1.1: an HTTP/2 connection that the gateway closes fails every request under way on it.
            http2=False,
            follow_redirects=False,
            timeout=httpx.Timeout(answer, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=_CONNECTIONS, keepalive_expiry=30.0),
            event_hooks={"response": [self._note]},
        )
        return SyncPostgrestClient(
            f"{self._url}/rest/v1", schema=self.schema, headers=headers, http_client=session, retry_enabled=False
        )

    def _note(self, response: httpx.Response) -> None:
        self._answered.status = response.status_code
        self._answered.retry_after = response.headers.get("retry-after")
