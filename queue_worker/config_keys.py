"""What a key of Supabase says about itself: nothing secret, and enough to refuse one that browsers have."""

from __future__ import annotations

import base64
import json

_BROWSERS = ("anon", "authenticated", "publishable")
_PREFIXES = {"sb_publishable_": "publishable", "sb_secret_": "secret"}


def role_of(key: str) -> str:
    """Return the role a key is for: 'secret' or 'publishable' by its prefix, else claim `role` of the JWT, else ''.

    Nothing is verified, that is the server's part. Forms: Supabase's documentation, "API keys"; RFC 7519.
    """
    for prefix, role in _PREFIXES.items():
        if key.startswith(prefix):
            return role
    try:
        claims = json.loads(base64.urlsafe_b64decode(key.split(".")[1] + "=="))
        return str(claims.get("role") or "")
    except (IndexError, ValueError, AttributeError):
        return ""


def refusal(key: str) -> str | None:
    """Return why a key cannot be that of a worker, in one line; None: it can be."""
    role = role_of(key)
    if role in _BROWSERS:
        return (
            f"SUPABASE_SERVICE_ROLE_KEY holds a key for browsers ({role}), which may do nothing here: take the secret"
            " key (sb_secret_...) or the service_role key from Project Settings > API Keys"
        )
    return None


def notice(key: str) -> str | None:
    """Return a line about a key that may do more than a worker needs; None where it does not."""
    role = role_of(key)
    if role in ("secret", "service_role"):
        return (
            "SUPABASE_SERVICE_ROLE_KEY may do everything in the project; a JWT for role queue_worker is enough for a"
            " worker, see docs/security.md"
        )
    return None
