"""A Supabase project as the tests see it: a database, PostgREST, the gateway, and the keys."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.supabase.gateway import SECRET_KEY, Gateway, gateway
from tests.supabase.postgrest import SECRET, PostgREST, postgrest


def jwt(role: str, secret: str = SECRET, **claims: Any) -> str:
    """Return a key as Supabase signs them: HS256 (RFC 7515, appendix A.1)."""
    parts = [_encode(json.dumps(one).encode()) for one in ({"alg": "HS256", "typ": "JWT"}, {"role": role, **claims})]
    signature = hmac.new(secret.encode(), ".".join(parts).encode(), hashlib.sha256).digest()
    return ".".join([*parts, _encode(signature)])


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class Project:
    """`url` and `service_key` are what a user has; `dsn` is the database behind."""

    url: str
    dsn: str
    gateway: Gateway
    postgrest: PostgREST
    service_key: str = jwt("service_role")
    anon_key: str = jwt("anon")
    secret_key: str = SECRET_KEY

    def settings(self, **more: Any) -> dict[str, Any]:
        """The settings of a worker that has nothing but a URL and a key."""
        return {"supabase_url": self.url, "supabase_service_role_key": self.service_key, **more}


@contextlib.contextmanager
def project(dsn: str, **options: str) -> Iterator[Project]:
    """Run a project on a database that has the roles and the schema."""
    with postgrest(dsn, **options) as server, gateway(server.port, {SECRET_KEY: jwt("service_role")}) as front:
        yield Project(front.url, dsn, front, server)
