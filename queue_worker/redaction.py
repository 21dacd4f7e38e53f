"""Taking secrets and control characters out of text before it is logged or stored."""

from __future__ import annotations

import re
import threading

MASK = "***"
_LONGEST = 65_536
"""Characters that are looked at; the rest of a longer text is dropped, so that no text can stall a worker."""

# Every repetition is bounded: these run over text that anybody may have written.
_NAMES = (
    r"(?:passw(?:or)?d|passphrase|(?<![a-z])pass(?![a-z])|pwd|secret|token|api[_-]?key"
    r"|(?:access|private|service[_-]?role)[_-]?key)"
)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.{0,8000}?(?:-----END [A-Z ]{0,40}-----|\Z)", re.DOTALL),
        MASK,
    ),
    # Greedy up to the last '@' without a space: a password with '@' or '/' in it must not leak its tail.
    (re.compile(r"(\b[a-zA-Z][\w+.-]{0,30}://[^\s:/@]{0,200}:)\S{1,1000}@"), rf"\1{MASK}@"),
    (
        re.compile(
            r"(\b(?:proxy-)?authorization\\?[\"']?\s{0,5}[:=]\s{0,5}\\?[\"']?)"
            r"(?:[a-z]{1,20}\s{1,5})?[^\s\"',;\\]{1,8000}",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"(\b(?:set-)?cookie\\?[\"']?\s{0,5}[:=]\s{0,5})[^\r\n]{1,8000}", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"(\bbearer\s{1,5})[a-z0-9._~+/=-]{12,8000}", re.IGNORECASE), rf"\1{MASK}"),
    (
        re.compile(r"(\bauth\s{1,5}(?:plain|login|cram-md5|xoauth2)\s{1,5})[a-z0-9+/]{8,8000}={0,2}", re.IGNORECASE),
        rf"\1{MASK}",
    ),
    (re.compile(r"eyJ[\w-]{5,8000}(?:\.[\w-]{0,8000}){0,4}"), MASK),
    (re.compile(r"\b(?:(?:sk|rk)_(?:live|test)_|whsec_|sb_secret_|sbp_)\w{1,400}"), MASK),
    (
        re.compile(
            rf"((?<![a-z0-9])[\w-]{{0,40}}?{_NAMES}\\?[\"']?\s{{0,5}}(?:=>|[=:])\s{{0,5}})"
            r"(?:\"(?:[^\"\\]|\\.){0,4000}\"|'(?:[^'\\]|\\.){0,4000}'|[^\s,;&)}\]]{1,4000})",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
)
# Most texts hold none of these, and one search is all they cost.
_HINT = re.compile(r"://|pass|pwd|secret|token|key|auth|cookie|bearer|eyJ|[rs]k_|whsec_|sb_|sbp_", re.IGNORECASE)
_SECRET_NAME = re.compile(rf"{_NAMES}|authorization|cookie", re.IGNORECASE)

# C0 and C1 controls, line and paragraph separators, direction marks and overrides, lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class _Registered:
    """The secrets that were registered, and the pattern that finds them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.values: frozenset[str] = frozenset()
        self.pattern: re.Pattern[str] | None = None

    def add(self, value: str) -> None:
        with self.lock:
            self.values |= {value}
            # The longest first, so that a URL is hidden before the password inside it.
            parts = [
                re.escape(secret) if len(secret) >= 12 else rf"(?<!\w){re.escape(secret)}(?!\w)"
                for secret in sorted(self.values, key=lambda secret: (-len(secret), secret))
            ]
            self.pattern = re.compile("|".join(parts))


_registered = _Registered()


def register_secret(value: str) -> None:
    """Hide `value` in everything `redact` sees from now on; values under four characters are ignored.

    Those under twelve are hidden as whole words only, so that a password such as `test` does not eat every `latest`.
    """
    if len(value) >= 4:
        _registered.add(value)


def redact(text: str) -> str:
    """Return `text` with registered secrets, and what looks like a secret, replaced by `***`.

    Known forms: passwords in URLs and in `password=...`, Authorization and Cookie headers, SMTP AUTH, JWTs, keys of
    Stripe and Supabase, private keys. Text beyond 65,536 characters is dropped.
    """
    text = text[:_LONGEST]
    if _registered.pattern is not None:
        text = _registered.pattern.sub(MASK, text)
    if _HINT.search(text) is not None:
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
    return text


def secret_name(name: str) -> bool:
    """Whether the value of a field called `name` is to be hidden whatever it is."""
    return _SECRET_NAME.search(name) is not None


def escape(text: str) -> str:
    """Return `text` on one line: control characters and direction marks as `\\n`, `\\x1b`, `\\u202e` (CWE-117)."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def escape_json(text: str) -> str:
    """Return the JSON document `text`, which holds no line breaks, with unsafe characters as JSON escapes."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def mask_address(address: str) -> str:
    """Return an e-mail address that a log may show: `ann@example.com` becomes `a**@example.com`."""
    local, at, domain = address.strip().rstrip(">").rpartition("@")
    local = local.rpartition("<")[2]
    if not at or not local or not domain:
        return "**"
    return f"{local[0] if len(local) > 1 else ''}**@{domain}"
