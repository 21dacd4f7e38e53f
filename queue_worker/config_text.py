"""Settings as text: the Postgres URL made of its parts, and values shown to people with secrets masked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

from pydantic import SecretStr

MASK = "********"

_URL_PASSWORD = re.compile(r"\w+://[^:/?@]*:([^/?@]+)@")
_QUERY_PASSWORD = re.compile(r"[?&](?:ssl)?password=([^&#]+)", re.IGNORECASE)
_PAIR_PASSWORD = re.compile(r"(?<!\w)(?:ssl)?password\s*=\s*(?:'((?:\\.|[^'\\])*)'?|((?:\\.|[^\s\\'])+))", re.DOTALL)

# The user and the password are greedy up to the last '@', so that a wrongly quoted password is hidden as a whole.
_PLAIN_URL = re.compile(r"(postgres(?:ql)?://[^:/?#@]*)(:.*)?@([^@/?#]*(?:/[^@?#]*)?)(\?[^@]*)?", re.DOTALL)
_QUERY_SECRET = re.compile(r"((?:password|token|key)=)[^&]*", re.IGNORECASE)
_CREDENTIALS = re.compile(r"postgres(?:ql)?://(?P<credentials>[^/?]*@)?[^@]*\Z", re.DOTALL)


def postgres_url(host: str, port: int, user: str, password: str, database: str) -> str:
    """Return the URL for libpq; every part is quoted, `host` may be IPv6 or the folder of a Unix socket."""
    login = quote(user, safe="") + (":" + quote(password, safe="") if password else "")
    name = quote(database, safe="")
    if host.startswith("/"):
        return f"postgresql://{login}@:{port}/{name}?host={quote(host, safe='')}"
    address = f"[{host}]" if ":" in host else quote(host, safe="")
    return f"postgresql://{login}@{address}:{port}/{name}"


def check_postgres_url(text: str) -> str:
    """Return `text` if libpq can read it as a URL or as key=value pairs; raises ValueError with the rule."""
    if "://" not in text and "=" in text:
        return text
    if not re.match(r"postgres(ql)?://", text):
        raise ValueError("must begin with postgresql:// (no driver name such as +asyncpg)")
    found = _CREDENTIALS.match(text.partition("?")[0])
    credentials = (found["credentials"] or "")[:-1] if found else "@"
    if "@" in credentials or re.search(r"%(?![0-9A-Fa-f]{2})", credentials):
        raise ValueError("holds a password with special characters: write @ as %40, / as %2F, ? as %3F, % as %25")
    return text


def passwords(dsn: str) -> list[str]:
    """Return the passwords in a URL or in key=value pairs, each as it is written and as libpq reads it."""
    if "://" in dsn:
        written = [*_URL_PASSWORD.findall(dsn), *_QUERY_PASSWORD.findall(dsn)]
        return [spelling for password in written for spelling in (password, unquote(password))]
    written = [quoted or plain for quoted, plain in _PAIR_PASSWORD.findall(dsn)]
    return [spelling for password in written for spelling in (password, re.sub(r"\\(.)", r"\1", password))]


def mask(secret: str) -> str:
    """Return `secret` masked; of a Postgres URL everything stays but the password."""
    url = _PLAIN_URL.fullmatch(secret)
    if url is None:
        return MASK
    hidden = f":{MASK}" if url[2] else ""
    return f"{url[1]}{hidden}@{url[3]}" + _QUERY_SECRET.sub(rf"\1{MASK}", url[4] or "")


def show(value: Any) -> str:
    """Return a setting's value as its variable would be written, secrets masked."""
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return mask(value.get_secret_value())
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{name}={item}" for name, item in value.items())
    if isinstance(value, tuple):
        return ",".join(show(item) for item in value)
    return f"{value:.12g}" if isinstance(value, float) else str(value)
