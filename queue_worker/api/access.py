"""Who may do what: tokens, sessions of the dashboard, and the count of wrong guesses."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from typing import Annotated, Literal

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from queue_worker.api.answers import ApiError
from queue_worker.config import Settings

Role = Literal["reader", "operator"]

COOKIE = "queue_worker_session"
SESSION_SECONDS = 12 * 3600
WRONG_AT_MOST = 10
WRONG_WITHIN = 60.0
_CALLERS_REMEMBERED = 10_000

bearer = HTTPBearer(auto_error=False, description="The operator token, or the read-only one")


def _digest(text: str) -> bytes:
    # A digest has one length whatever was sent, so that the comparison tells nothing about the token's.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class Access:
    """Knows the tokens by their digests. Without any token everybody who reaches the server is an operator.

    Sessions are signed with a key made of the tokens: every process with the same tokens knows them, nothing is stored,
    and a new token ends them all.
    """

    def __init__(self, settings: Settings) -> None:
        tokens: list[tuple[Role, str | None]] = [
            ("operator", settings.api_token.get_secret_value() if settings.api_token else None),
            ("reader", settings.api_read_token.get_secret_value() if settings.api_read_token else None),
        ]
        self._digests: list[tuple[Role, bytes]] = [(role, _digest(token)) for role, token in tokens if token]
        known = b"".join(digest for _, digest in self._digests)
        self._key = hmac.digest(known, b"session", "sha256") if known else secrets.token_bytes(32)
        self._wrong: dict[str, list[float]] = {}
        self._ended: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether no token is set."""
        return not self._digests

    def role_of(self, token: str) -> Role | None:
        """Return whose token it is; compares with every token, in constant time."""
        given = _digest(token)
        found: Role | None = None
        for role, digest in self._digests:
            if hmac.compare_digest(given, digest):
                found = role
        return found

    # ------------------------------------------------------------------------------------------------ sessions

    def session(self, role: Role) -> str:
        """Return the value of a cookie that stands for `role` for `SESSION_SECONDS`."""
        body = f"{role}.{int(time.time()) + SESSION_SECONDS}.{secrets.token_hex(8)}"
        return f"{body}.{self._sign(body)}"

    def role_of_session(self, cookie: str) -> Role | None:
        """Return the role of a cookie's value, None where it is forged or over."""
        body, _, signature = cookie.rpartition(".")
        if not hmac.compare_digest(_digest(self._sign(body)), _digest(signature)):
            return None
        role, end, name = (body.split(".") + [""] * 3)[:3]
        # The key signs what forms send along, too: that is no session.
        if role not in ("reader", "operator") or int(end) < time.time() or name in self._ended:
            return None
        return role  # type: ignore[return-value]

    def end_session(self, cookie: str) -> None:
        """Let a session end before its time: in this process, other processes with the same tokens do not know."""
        if self.role_of_session(cookie) is None:
            return
        _, end, name, _ = cookie.split(".")
        with self._lock:
            now = time.time()
            kept = {one: until for one, until in self._ended.items() if until >= now} | {name: int(end)}
            self._ended = dict(list(kept.items())[-_CALLERS_REMEMBERED:])

    def csrf(self, cookie: str) -> str:
        """Return what forms of the session must send along; another site cannot know it."""
        return self._sign(f"csrf.{cookie}")

    def csrf_fits(self, cookie: str, given: str) -> bool:
        """Whether a form came from a page of this session."""
        return hmac.compare_digest(_digest(self.csrf(cookie)), _digest(given))

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode("utf-8", "surrogatepass"), "sha256").hexdigest()

    # ------------------------------------------------------------------------------------------------ wrong guesses

    def refuse(self, caller: str) -> ApiError:
        """Return the error for a wrong token of `caller`, and count it."""
        now = time.monotonic()
        with self._lock:
            recent = [at for at in self._wrong.pop(caller, []) if now - at < WRONG_WITHIN]
            # At most so many, however long somebody keeps guessing; re-inserted last, so that the oldest goes first.
            self._wrong[caller] = [*recent, now][-WRONG_AT_MOST - 1 :]
            while len(self._wrong) > _CALLERS_REMEMBERED:
                del self._wrong[next(iter(self._wrong))]
        if len(recent) >= WRONG_AT_MOST:
            return ApiError(429, "too many wrong tokens: wait a minute", {"Retry-After": str(int(WRONG_WITHIN))})
        return ApiError(401, "the token is wrong", {"WWW-Authenticate": "Bearer"})


def caller_of(request: Request) -> str:
    """Return the address a request came from."""
    return request.client.host if request.client else "?"


async def role(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)] = None
) -> Role:
    """Return the role of a request by its token, or by the cookie of the dashboard; raises ApiError 401 or 429."""
    access: Access = request.state.queue_worker.access
    if access.open:
        return "operator"
    if given is not None:
        found = access.role_of(given.credentials)
        if found is None:
            raise access.refuse(caller_of(request))
        return found
    cookie = request.cookies.get(COOKIE)
    if cookie:
        found = access.role_of_session(cookie)
        if found is not None:
            if request.method not in ("GET", "HEAD") and not access.csrf_fits(
                cookie, request.headers.get("x-csrf-token", "")
            ):
                raise ApiError(403, "the request lacks the token of its page: reload it")
            return found
    raise ApiError(401, "a token is needed: Authorization: Bearer ...", {"WWW-Authenticate": "Bearer"})


async def operator(found: Annotated[Role, Depends(role)]) -> Role:
    """Return the role if it may change something; raises ApiError 403."""
    if found != "operator":
        raise ApiError(403, "this token is read-only")
    return found


Reader = Annotated[Role, Depends(role)]
Operator = Annotated[Role, Depends(operator)]
