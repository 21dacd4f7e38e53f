"""The stages on which the conformance suite plays: how a worker reaches the database, and which pgmq is there.

A test of the suite is marked `conformance` and uses the fixture `dsn`; it runs once on every stage. `without` and
`only` name a transport, for what one cannot do by nature; with `hosted` it plays directly on one pgmq alone, for what
does not depend on pgmq. It looks at rows through `dsn` itself, which is always the database's own URL, and starts
workers by `tests.helpers.running` or the zygote, which ask `settings_of(dsn)`.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Stage(NamedTuple):
    """`transport`: direct, pooler or rest; `pgmq`: the version."""

    transport: str
    pgmq: str

    @property
    def name(self) -> str:
        return f"{self.transport}-pgmq{self.pgmq}"


PLAIN = Stage("direct", "1.13")
HOSTED = "1.5.1"
"""The pgmq of hosted Supabase."""

# Both versions of pgmq, and every transport: what a version changes lies in the database, behind all of them alike.
STAGES = [PLAIN, *(Stage(transport, HOSTED) for transport in ("direct", "pooler", "rest"))]


class Dsn(str):
    """The database's own URL, which knows how a worker of this test gets there."""

    worker: dict[str, Any]


def stages_of(*, without: str | None = None, only: str | None = None, hosted: bool = False) -> list[Stage]:
    """Return the stages of a test that is marked so."""
    fitting = [one for one in STAGES if one.transport != without and only in (None, one.transport)]
    if hosted:
        fitting = [one for one in fitting if one == PLAIN or one.transport != "direct"]
    return fitting


_VARIABLES = {"pooler": "QUEUE_WORKER_POOLER"}


def environment_of(dsn: str) -> dict[str, str]:
    """Return the variables by which a program of its own reaches the database `dsn`."""
    return {_VARIABLES.get(name, name.upper()): value for name, value in settings_of(dsn).items()}


def settings_of(dsn: str) -> dict[str, Any]:
    """Return the settings by which a worker or a producer reaches the database `dsn`."""
    return dict(getattr(dsn, "worker", None) or {"database_url": str(dsn)})
