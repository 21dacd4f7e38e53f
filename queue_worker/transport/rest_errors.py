"""What goes wrong over REST, in one line that says what to do.

Codes: PostgREST's documentation, "Errors"; what Supabase's gateway adds: its guides on HTTP status codes and pausing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from queue_worker.errors import CallRefused, TransportError, TransportUnavailable
from queue_worker.sqlstates import server_trouble

UNKNOWN_ROLE = "WRONG_ROLE"
MISSING_FUNCTION = "PGRST202"
NOT_EXPOSED = "PGRST106"

SETTINGS = (NOT_EXPOSED, "PGRST301", "PGRST302", "PGRST303", "WRONG_KEY", "WRONG_URL", "WRONG_TLS", UNKNOWN_ROLE)
"""Codes of `CallRefused` for what only a person mends: at the start they are exit 78."""

NEEDS_URL = (
    "this needs a Postgres connection: set DATABASE_URL (Supabase: Connect > Session pooler). Without one, paste"
    " `queue-worker migrate --print` into the SQL editor, or use `migrate --supabase DIR` and the Supabase CLI"
)

_EXPOSE = (
    "the API does not show schema {schema}: add it under Project Settings > Data API > Exposed schemas (self-hosted:"
    " PGRST_DB_SCHEMAS, local CLI: [api] schemas in config.toml)"
)
_KEY = (
    "SUPABASE_SERVICE_ROLE_KEY is not accepted ({message}): copy it anew from Project Settings > API Keys of the"
    " project that SUPABASE_URL names"
)
_MIGRATE = (
    "the API knows no function {schema}.call: run `queue-worker migrate` with a DATABASE_URL or paste `queue-worker"
    " migrate --print` into the SQL editor; if that was done: notify pgrst, 'reload schema';"
)
_PAUSED = "the Supabase project is paused: restore it in the dashboard"
_AWAY = ("PGRST000", "PGRST001", "PGRST002", "PGRST003")
_SAID = {
    NOT_EXPOSED: _EXPOSE,
    "PGRST301": _KEY,
    "PGRST302": _KEY,
    "PGRST303": _KEY,
    UNKNOWN_ROLE: _KEY,
    MISSING_FUNCTION: _MIGRATE,
}
# Up to version 12 it is the message, later the hint.
_EXPOSED = re.compile(r"(?:one of the following|schemas are exposed): (.+)")
# An HTTP status has three digits, PostgREST's own codes begin with PGRST.
_SQLSTATE = re.compile(r"[0-9A-Z]{5}")


def explain(code: str, message: str, hint: str, status: int, schema: str) -> TransportError:
    """Return our exception for an answer that is an error.

    `code`: PostgREST's, a SQLSTATE, or the HTTP status as text; `status`: the HTTP status, 0 where it is not known.
    """
    message = one_line(message)
    if code == "22023" and message.startswith("role "):
        code = UNKNOWN_ROLE
    if status == 540:
        return TransportUnavailable(_PAUSED)
    if not code and not message and status == 400:
        # What PostgREST answers when Postgres goes away in the middle of a statement: an error without a word.
        return TransportUnavailable("the API lost its connection to the database")
    if code in _SAID:
        return CallRefused(_SAID[code].format(message=message, schema=schema), code)
    sqlstate = bool(_SQLSTATE.fullmatch(code))
    if code in _AWAY or server_trouble(code) or (not sqlstate and (status == 429 or status >= 500)):
        return TransportUnavailable(f"{message or 'no answer'} ({code or status})")
    if sqlstate:
        return CallRefused(f"{message} ({one_line(hint)})" if hint else message, code)
    return _by_status(status, message, code)


def exposed_in(answer: Mapping[str, Any]) -> list[str] | None:
    """Return the schemas that PostgREST names where it was asked for one that it does not show; None: it names none."""
    for key in ("hint", "message"):
        if answer.get("code") == NOT_EXPOSED and (found := _EXPOSED.search(str(answer.get(key) or ""))):
            return [name.strip() for name in found[1].split(",")]
    return None


def _by_status(status: int, message: str, code: str) -> CallRefused:
    if status in (401, 403):
        return CallRefused(_KEY.format(message=message), "WRONG_KEY")
    if status in (301, 302, 307, 308, 404, 405):
        return CallRefused(f"SUPABASE_URL does not lead to a Supabase API (HTTP {status})", "WRONG_URL")
    return CallRefused(f"{message or 'the API refused the call'} ({code or status})", code)


def unreached(error: Exception, host: str) -> TransportError:
    """Return our exception for a request that got no answer."""
    text = one_line(str(error)) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return CallRefused(f"the certificate of {host} is not trusted: {text}", "WRONG_TLS")
    if "Name or service not known" in text or "nodename nor servname" in text or "No address associated" in text:
        text = f"the name {host} is not known: check SUPABASE_URL, a paused project loses its name"
    return TransportUnavailable(f"{text} ({host})" if host not in text else text)


def one_line(text: str) -> str:
    """Return a text without line breaks, cut to what a line of a log can bear; HTML is not for reading."""
    text = " ".join(str(text or "").split())
    return "the gateway answered with a page of HTML" if text.startswith("<") else text[:300]
