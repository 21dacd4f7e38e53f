"""E-mail addresses as people write them, one per text: parsed, checked, and put into their form for SMTP.

The grammar is a strict part of RFC 5322 and RFC 6531: `local@domain` or `Name <local@domain>`. Quoted local parts,
comments, groups, source routes and address literals are refused: they are what parsers disagree about.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

ONE_ADDRESS = "must hold exactly one address, as ann@example.com or Ann <ann@example.com>; give several as a list"
_BAD_LOCAL = "the part before the @ is not a usable mailbox name"
_BAD_DOMAIN = "the part after the @ is not a usable domain name"

# RFC 5321 4.5.3.1: octets of the local part and of the whole path without its brackets.
_MAX_LOCAL, _MAX_ADDRESS = 64, 254
_MAX_NAME = 200

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\u0080-\U0010ffff]"
_LOCAL = re.compile(rf"{_ATEXT}+(?:\.{_ATEXT}+)*")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SPECIAL_IN_NAME = re.compile(r'[<>@,;:"\\]')


class Mailbox(NamedTuple):
    """`name` for people (may be empty) and `address` as SMTP wants it: the domain in lower-case ASCII (IDNA)."""

    name: str
    address: str

    @property
    def domain(self) -> str:
        """The part after the @."""
        return self.address.rpartition("@")[2]


def check_line(text: str) -> str:
    """Return `text` if it can stand in one header line; raises ValueError for control characters and line breaks.

    U+2028 and U+2029 are line breaks to some programs that read mail, so they count as such.
    """
    for character in text:
        if unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs"):
            raise ValueError("must not hold control characters or line breaks")
    return text


def parse_mailbox(text: str) -> Mailbox:
    """Parse exactly one address; raises ValueError with a text that never repeats the input."""
    text = check_line(text).strip()
    if not text.endswith(">"):
        return Mailbox("", _address(text))
    name, bracket, address = text[:-1].rpartition("<")
    if not bracket:
        raise ValueError(ONE_ADDRESS)
    return Mailbox(_name(name.strip()), _address(address.strip()))


def _name(text: str) -> str:
    quoted = _QUOTED.fullmatch(text)
    if quoted:
        text = re.sub(r"\\(.)", r"\1", quoted[1]).strip()
    elif _SPECIAL_IN_NAME.search(text):
        raise ValueError(ONE_ADDRESS + '; a name that holds any of , ; : @ < > " goes between double quotes')
    if len(text) > _MAX_NAME:
        raise ValueError(f"the name before the address may have {_MAX_NAME} characters")
    return unicodedata.normalize("NFC", text)


def _address(text: str) -> str:
    local, at, domain = text.rpartition("@")
    if not at or "@" in local or any(character in text for character in ' ,;:<>"()'):
        raise ValueError(ONE_ADDRESS)
    local = unicodedata.normalize("NFC", local)
    if not _LOCAL.fullmatch(local) or len(local.encode()) > _MAX_LOCAL or not _visible(local):
        raise ValueError(_BAD_LOCAL)
    address = f"{local}@{_ascii_domain(domain)}"
    if len(address.encode()) > _MAX_ADDRESS:
        raise ValueError(_BAD_DOMAIN)
    return address


def _visible(text: str) -> bool:
    return not any(unicodedata.category(character)[0] in "CZ" for character in text)


def _ascii_domain(domain: str) -> str:
    """Return the domain in lower-case ASCII; raises ValueError."""
    domain = unicodedata.normalize("NFC", domain.lower())
    ascii_domain = domain
    if not domain.isascii():
        try:
            ascii_domain = domain.encode("idna").decode("ascii")
            # The codec is IDNA 2003, which maps some letters to others (a sharp s to ss): another domain by today's
            # IDNA 2008. Whoever means such a domain must write its xn-- form.
            if ascii_domain.encode("ascii").decode("idna") != domain:
                raise ValueError(_BAD_DOMAIN + "; write it in its xn-- form")
        except UnicodeError:
            raise ValueError(_BAD_DOMAIN) from None
    if len(ascii_domain) > 253 or not _DOMAIN.fullmatch(ascii_domain) or ascii_domain.rpartition(".")[2].isdigit():
        raise ValueError(_BAD_DOMAIN)
    return ascii_domain
