"""SQLSTATEs that decide something (PostgreSQL documentation, appendix A), each named once."""

from __future__ import annotations

UNDEFINED_TABLE = "42P01"
READ_ONLY = "25006"
OTHER_ENVIRONMENT = "42P06"  # of SQL check_environment

_SERVER = ("08", "53", "57P0", "58", READ_ONLY)
_CONFLICT = ("40001", "40P01")
_LOCK = ("55P03", "57014")


def server_trouble(sqlstate: str) -> bool:
    """Whether the server is in trouble, so that another connection or a later moment may do better.

    Connection errors, insufficient resources, shutdown and restart, input and output errors, read-only.
    """
    return sqlstate.startswith(_SERVER)


def nobodys_fault(sqlstate: str) -> bool:
    """Whether a statement failed without being wrong: server trouble, a serialization failure or a deadlock."""
    return server_trouble(sqlstate) or sqlstate.startswith(_CONFLICT)


def passes(sqlstate: str) -> bool:
    """Whether the very same statement may succeed a little later: also one that waited too long for a lock."""
    return nobodys_fault(sqlstate) or sqlstate.startswith(_LOCK)
