"""Settings of the payments processor; `builtin` fills them in, nothing here reads the environment."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from queue_worker.errors import ConfigError

_SQL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}\.[A-Za-z_][A-Za-z0-9_$]{0,62}")


@dataclass(frozen=True, slots=True)
class PaymentsConfig:
    """Settings of the processor. Raises ConfigError for a value that cannot work.

    `source` names a SQL function (id text) -> table(amount_minor bigint, currency text, account text, key text),
    `result` one (id text, status text, provider_id text, error text) -> void; both as schema.function. The actions
    other than a charge call functions of the same names: `source` with (id text, action text) and one more column,
    payment_key text; `result` with one more argument, action text. Left empty, payments wait: every message is
    retried with a line that names the setting. `provider` is sandbox, stripe, or any name together with an own
    factory. `max_minor`: largest amount of one payment, in minor currency units. `timeouts`: seconds to connect to the
    provider, and to wait for its answer.
    """

    source: str = ""
    result: str = ""
    provider: str = "sandbox"
    currencies: tuple[str, ...] = ("EUR", "USD")
    max_minor: int = 1_000_000
    stripe_api_key: str = field(default="", repr=False)
    stripe_api_base: str | None = None
    timeouts: tuple[float, float] = (5.0, 20.0)

    def __post_init__(self) -> None:
        for name in ("source", "result"):
            value = getattr(self, name)
            if value and not _SQL_NAME.fullmatch(value):
                raise ConfigError(f"{setting(name)} must be a function as schema.function, without arguments")
        if not self.currencies or not all(re.fullmatch("[A-Za-z]{3}", code) for code in self.currencies):
            raise ConfigError(f"{setting('currencies')} must be three-letter codes (ISO 4217) such as EUR,USD")
        object.__setattr__(self, "currencies", tuple(code.upper() for code in self.currencies))
        if self.max_minor < 1:
            raise ConfigError(f"{setting('max_minor')} must be at least 1")


def setting(name: str) -> str:
    """Return the variable that sets a field of PaymentsConfig."""
    return f"QUEUE_WORKER_PAYMENTS_{name.upper()}"
