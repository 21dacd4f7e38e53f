"""What the payments processor asks of a provider, and the sandbox provider that moves no money.

ProviderError
├── OutcomeUnknown    the charge may or may not have happened: ask the provider before anything else
├── CannotTell        `find` could not look at everything, so "nothing found" would mean nothing
├── NotCharged        nothing was charged and later it may work: rate limit, wrong API key
└── RequestRefused    nothing was charged and repeating cannot help: a person must look
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from queue_worker.errors import CallRefused, QueueWorkerError
from queue_worker.log import redact
from queue_worker.message import clean_text

KEY_REUSE = "QWP01"
"""SQLSTATE of the ledger and the sandbox: the key was used with other values."""

_CARD_NUMBER = re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)")


def clean_reason(text: str) -> str:
    """Return a provider's text fit to store, show and log: one line, no secrets, nothing like a card number."""
    return clean_text(_CARD_NUMBER.sub("***", redact(" ".join(text.split()))))[:1000]


class ProviderError(QueueWorkerError):
    """A provider could not give a final answer.

    `retry_after` is its own wish for a pause, in seconds. `down`: it cannot serve anybody now.
    """

    def __init__(self, text: str, *, retry_after: float | None = None, down: bool = False) -> None:
        super().__init__(clean_reason(text))
        self.retry_after = retry_after
        self.down = down


class OutcomeUnknown(ProviderError):
    """The charge may or may not have happened.

    `stored`: the provider keeps this very answer for the key, so that repeating the call cannot tell more.
    """

    def __init__(
        self, text: str, *, retry_after: float | None = None, down: bool = False, stored: bool = False
    ) -> None:
        super().__init__(text, retry_after=retry_after, down=down)
        self.stored = stored


class CannotTell(ProviderError):
    """`find` could not look at everything."""


class NotCharged(ProviderError):
    """Nothing was charged; the same request may work later."""


class RequestRefused(ProviderError):
    """Nothing was charged, and the same request will be refused again."""


Action = Literal["charge", "authorize", "capture", "refund"]


@dataclass(frozen=True, slots=True)
class Charge:
    """One logical act on a payment, the same on every attempt.

    `amount_minor` is in minor currency units, `currency` an ISO 4217 code in capitals. `since` and `until` are
    Unix seconds of the first and the latest earlier attempt (None: no earlier attempt), for `find`. `payment` is the
    provider's id of the payment that a capture or refund belongs to.
    """

    key: str = field(repr=False)
    payment_id: str
    amount_minor: int
    currency: str
    account: str = field(repr=False)
    since: float | None = None
    until: float | None = None
    action: Action = "charge"
    payment: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What the provider says about a charge; `pending` means that it will know later."""

    state: Literal["succeeded", "failed", "pending"]
    provider_id: str | None
    error: str | None = None


class PaymentProvider(Protocol):
    """A payment provider; used by several threads at once.

    `name` is stored in the ledger. `key_lifetime`: for how many seconds the provider remembers an idempotency key
    (None: for ever).
    """

    @property
    def name(self) -> str: ...

    @property
    def key_lifetime(self) -> float | None: ...

    def charge(self, charge: Charge) -> Result:
        """Charge, or authorize where `charge.action` says so; a declined card is a Result, not an error.

        Once per `charge.key`, however often it is called. Raises a ProviderError. Must not retry by itself.
        """

    def capture(self, charge: Charge) -> Result:
        """Take the money of the authorized `charge.payment`, once per `charge.key`; as `charge`."""

    def refund(self, charge: Charge) -> Result:
        """Give money of `charge.payment` back, once per `charge.key`; as `charge`. Too much is a failed Result."""

    def find(self, charge: Charge) -> Result | None:
        """Return what became of `charge.key`, or None when the provider has certainly not acted on it.

        Raises a ProviderError.
        """

    def close(self) -> None:
        """Give back what the provider holds."""


SqlCall = Callable[..., list[dict[str, Any]]]
"""`Job.call`: call(function, **named arguments) -> rows."""

ProviderFactory = Callable[[SqlCall], PaymentProvider]
"""Returns the provider for one job; only the sandbox needs the call."""


class SandboxProvider:
    """A provider without network: its charges are rows of the worker's own database and survive a restart.

    Some accounts steer it: declined, fails_twice, always_fails, rate_limited, timeout_after_charge; with capture_ or
    refund_ in front they steer that act on the payment (see sandbox_act in sql/0019_payments.sql). All others succeed.
    """

    name = "sandbox"
    key_lifetime = None

    def __init__(self, call: SqlCall) -> None:
        self._call = call

    def charge(self, charge: Charge) -> Result:
        """Act in the sandbox, whatever the action; see PaymentProvider."""
        try:
            rows = self._call(
                "queue_worker.sandbox_act",
                key=charge.key,
                action=charge.action,
                amount_minor=charge.amount_minor,
                currency=charge.currency,
                account=charge.account,
                payment=charge.payment,
            )
        except CallRefused as error:
            if error.sqlstate == KEY_REUSE:
                raise RequestRefused("the sandbox knows this key with another amount, currency or account") from None
            raise
        row = rows[0]
        match row["status"]:
            case "unavailable":
                raise OutcomeUnknown("the sandbox answered 503")
            case "rate_limited":
                raise NotCharged("the sandbox answered 429", retry_after=1.0, down=True)
            case "no_answer":
                raise OutcomeUnknown("the sandbox did not answer in time")
        return _sandbox_result(row)

    capture = refund = charge

    def find(self, charge: Charge) -> Result | None:
        """Look the key up; see PaymentProvider."""
        rows = self._call("queue_worker.sandbox_find", key=charge.key)
        if not rows:
            return None
        if (rows[0]["amount_minor"], rows[0]["currency"]) != (charge.amount_minor, charge.currency):
            raise RequestRefused("the sandbox knows this key with another amount or currency")
        return _sandbox_result(rows[0])

    def close(self) -> None:
        """Nothing is held."""


def _sandbox_result(row: dict[str, Any]) -> Result:
    return Result("succeeded" if row["status"] == "succeeded" else "failed", row["id"], row["error"])
