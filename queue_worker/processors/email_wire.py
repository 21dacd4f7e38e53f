"""Header values in their form on the wire, kept as they are by the standard library's generator.

The library's own folding of addresses and long tokens has had faults that join addresses or destroy URLs
(CVE-2025-1795, bpo-35805) and that depend on the Python version. Here each value is encoded first (RFC 2047) and then
folded at blanks only, so that a token is never changed.
"""

from __future__ import annotations

import re
from email.header import Header
from email.headerregistry import HeaderRegistry
from email.message import EmailMessage
from email.policy import EmailPolicy
from typing import Any, ClassVar, Literal

from queue_worker.processors.email_address import Mailbox

HEADERS_AS_GIVEN = (
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
    "X-Entity-Ref-ID",
    "References",
    "In-Reply-To",
    "Auto-Submitted",
    "Precedence",
)
"""The headers that a payload may set."""

ORIGINAL = {"to": "X-Original-To", "cc": "X-Original-Cc", "bcc": "X-Original-Bcc", "reply_to": "X-Original-Reply-To"}
"""The headers that say for whom a redirected mail was, by field of the payload."""

_OURS = ("From", "To", "Cc", "Reply-To", "Subject", "Message-ID", *ORIGINAL.values())
_LINE = 76
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ \-]+")


class WireHeader:
    """A header whose text is already encoded."""

    max_count: ClassVar[Literal[1] | None] = 1
    name: str

    @classmethod
    def parse(cls, value: str, kwds: dict[str, Any]) -> None:
        kwds["parse_tree"] = None
        kwds["decoded"] = value

    def fold(self, *, policy: Any) -> str:
        """Return the header's lines, broken before words only."""
        words = f"{self.name}: {self}".split(" ")
        lines = [words[0]]
        for word in words[1:]:
            # A line of blanks alone ends the headers for some readers, so an empty word never starts one.
            if word and lines[-1].strip() and len(lines[-1]) + 1 + len(word) > _LINE and lines[-1] != f"{self.name}:":
                lines.append(" " + word)
            else:
                lines[-1] += " " + word
        return str(policy.linesep).join(lines) + str(policy.linesep)


def _policy() -> EmailPolicy[EmailMessage]:
    registry: Any = HeaderRegistry()
    for name in (*_OURS, *HEADERS_AS_GIVEN):
        registry.map_to_type(name.lower(), WireHeader)
    # 7bit: relays that re-encode 8-bit bodies break signatures.
    return EmailPolicy(linesep="\r\n", cte_type="7bit", header_factory=registry)


POLICY = _policy()
"""The policy for messages without non-ASCII addresses."""

POLICY_UTF8 = POLICY.clone(utf8=True)
"""The policy for messages that need SMTPUTF8 (RFC 6531)."""


def encode_text(text: str) -> str:
    """Return unstructured text, such as a subject, for a header: as it is where it is short ASCII, else RFC 2047."""
    if text.isascii() and "=?" not in text and all(len(word) <= _LINE for word in text.split(" ")):
        return text
    return _encoded_words(text)


def encode_mailbox(mailbox: Mailbox) -> str:
    """Return one mailbox for an address header; the address itself is never encoded."""
    name = mailbox.name
    if not name:
        return mailbox.address
    if not name.isascii() or "=?" in name:
        shown = _encoded_words(name)
    elif _ATOMS.fullmatch(name):
        shown = name
    else:
        shown = '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
    return f"{shown} <{mailbox.address}>"


def _encoded_words(text: str) -> str:
    # RFC 2047: a line with encoded words has 76 characters at most, and "Reply-To: " comes before the first one. The
    # blank between two of them is not part of the text.
    return " ".join(Header(text, "utf-8", maxlinelen=64).encode(splitchars="").split("\n "))
