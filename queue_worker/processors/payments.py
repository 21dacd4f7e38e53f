"""The built-in `payments` processor: charges what a database row says, once, and tells the row what happened.

The message only names a row. Amount, currency, account and key come from the user's source function; the ledger
row, the user's result function and the ack commit together. Between those two the ledger makes sure that every
attempt uses one idempotency key, and that an attempt without an answer is followed by a question, never by a
second charge.

| what happened                                  | ledger    | message                                            |
|------------------------------------------------|-----------|----------------------------------------------------|
| charged                                        | succeeded | done                                               |
| declined, or the row's values were refused     | failed    | done: the result function gets 'failed' and why    |
| no answer, 5xx, 409, still processing          | unknown   | retry; `unknown_outcome` at the last attempt       |
| 429, wrong API key (401, 403)                  | unknown   | retry, after the provider's Retry-After            |
| the request itself was refused (other 400, 404)| unknown   | dead letter `provider_refused`                     |
| the key belongs to another amount or payment   | unchanged | dead letter `key_reuse`                            |
| no row, or a row that may not be charged       | no row    | dead letter `not_found`, `invalid_amount`, ...     |
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeGuard

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints

from queue_worker.errors import CallRefused, ConfigError, LeaseLost, Reject, Retry, TransportUnavailable
from queue_worker.processor import Job, Processor
from queue_worker.processors.payment_providers import (
    KEY_REUSE,
    CannotTell,
    Charge,
    NotCharged,
    OutcomeUnknown,
    PaymentProvider,
    ProviderError,
    ProviderFactory,
    RequestRefused,
    Result,
    SandboxProvider,
    clean_reason,
)

_SQL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}\.[A-Za-z_][A-Za-z0-9_$]{0,62}")
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_NO_FUNCTION = ("42883", "3F000", "PGRST202")  # undefined function, undefined schema, and both over REST
_NOT_AN_ID = ("22P02", "22003")  # the source function could not cast the id


def _id_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class PaymentMessage(BaseModel):
    """The payload: `id` of the row to charge (text or integer); the rest, as `send_row` sends it, is ignored.

    `key`, where given, must be the row's own key: it guards against a message meant for something else.
    """

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    id: Annotated[
        str, BeforeValidator(_id_text), StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")
    ]
    key: str | None = None


@dataclass(frozen=True, slots=True)
class PaymentsConfig:
    """Settings of the processor. Raises ConfigError for a value that cannot work.

    `source` names a SQL function (id text) -> table(amount_minor bigint, currency text, account text, key text),
    `result` one (id text, status text, provider_id text, error text) -> void; both as schema.function. Left empty,
    payments wait: every message is retried with a line that names the setting. `provider` is sandbox, stripe, or any
    name together with an own factory. `max_minor`: largest amount of one payment, in minor currency units.
    `timeouts`: seconds to connect to the provider, and to wait for its answer.
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
                raise ConfigError(f"{_setting(name)} must be a function as schema.function, without arguments")
        if not self.currencies or not all(re.fullmatch("[A-Za-z]{3}", code) for code in self.currencies):
            raise ConfigError(f"{_setting('currencies')} must be three-letter codes (ISO 4217) such as EUR,USD")
        object.__setattr__(self, "currencies", tuple(code.upper() for code in self.currencies))
        if self.max_minor < 1:
            raise ConfigError(f"{_setting('max_minor')} must be at least 1")


def make_processor(config: PaymentsConfig, provider_factory: ProviderFactory | None = None) -> Processor:
    """Return the processor for queue `payments`.

    `provider_factory(call)` returns the provider for one job and replaces the one that `config.provider` names.
    Raises ConfigError: unknown provider, package or key of Stripe missing, a currency that Stripe counts differently.
    """
    close = None
    if provider_factory is None and config.provider == "stripe":
        stripe = _stripe(config)
        provider_factory, close = (lambda call: stripe), stripe.close
    elif provider_factory is None and config.provider == "sandbox":
        provider_factory = SandboxProvider
    elif provider_factory is None:
        raise ConfigError(f"{_setting('provider')} is {config.provider!r:.40}; known: sandbox, stripe")
    payments = Payments(config, provider_factory)
    return Processor("payments", payments.handle, model=PaymentMessage, builtin=True, close=close)


def _stripe(config: PaymentsConfig) -> PaymentProvider:
    from queue_worker.processors.payment_stripe import (
        ODD_CURRENCIES,
        StripeProvider,
    )

    odd = sorted(ODD_CURRENCIES.intersection(config.currencies))
    if odd:
        raise ConfigError(
            f"{_setting('currencies')}: Stripe counts {', '.join(odd)} in other units than ISO 4217; remove it"
        )
    return StripeProvider(config.stripe_api_key, api_base=config.stripe_api_base, timeouts=config.timeouts)


def _setting(name: str) -> str:
    return f"QUEUE_WORKER_PAYMENTS_{name.upper()}"


class Payments:
    """The handler; holds settings only, so that all threads share it."""

    def __init__(self, config: PaymentsConfig, provider_factory: ProviderFactory) -> None:
        self.config = config
        self._provider = provider_factory

    def handle(self, job: Job[PaymentMessage]) -> None:
        """Run one payment; see the table in the module's docstring. Raises Retry and Reject."""
        charge = self._load(job)
        job.annotate(payment=charge.payment_id, amount=charge.amount_minor, currency=charge.currency)
        provider = self._provider(job.call)
        before = _reserve(job, provider.name, charge)
        if before["state"] in ("succeeded", "failed"):
            # The same key is the same payment: report it again, never charge it again.
            self._finish(job, charge, Result(before["state"], before["provider_id"], before["error"]))
            return
        charge = replace(charge, since=before["since"], until=before["until"])
        try:
            result = _ask(provider, charge, before["age"]) if before["state"] == "unknown" else None
            if result is None:
                result = _charge(job, provider, charge)
            if result.state == "pending":
                raise OutcomeUnknown(result.error or "the provider is still processing the payment")
        except ProviderError as error:
            job.call("queue_worker.payment_unknown", key=charge.key, error=str(error))
            job.annotate(status="unknown")
            raise _steer(job, charge, error) from None
        self._finish(job, charge, result)

    def _load(self, job: Job[PaymentMessage]) -> Charge:
        """Read the row that the message names; raises Reject for one that may not be charged."""
        payment_id = job.payload.id
        for name in ("source", "result"):
            if not getattr(self.config, name):
                raise Retry(f"payments cannot run: {_setting(name)} is not set, see sql/demo/payments.sql")
        try:
            rows = job.call(self.config.source, id=payment_id)
        except CallRefused as error:
            if error.sqlstate in _NOT_AN_ID:
                raise Reject(f"not_found: {self.config.source} cannot read the id of the message") from None
            raise _explain(error, "source", self.config.source) from None
        if len(rows) != 1:
            word, count = ("not_found", "no row") if not rows else ("ambiguous", f"{len(rows)} rows")
            raise Reject(f"{word}: {self.config.source} returned {count} for payment {payment_id}")
        charge = _validated(payment_id, rows[0], self.config)
        if job.payload.key is not None and job.payload.key != charge.key:
            raise Reject(f"key_mismatch: the message carries another key than the row of payment {payment_id}")
        return charge

    def _finish(self, job: Job[PaymentMessage], charge: Charge, result: Result) -> None:
        """Commit ledger, the user's row and the ack together."""
        try:
            with job.transaction() as tx:
                outcome = {"provider_id": result.provider_id, "error": result.error}
                tx.call("queue_worker.payment_finish", {"key": charge.key, "state": result.state, **outcome})
                tx.call(self.config.result, {"id": charge.payment_id, "status": result.state, **outcome})
        except (LeaseLost, TransportUnavailable):
            raise
        except Exception as error:
            note = f"{result.state} at the provider ({result.provider_id}), but it could not be recorded: {error}"
            job.call("queue_worker.payment_unknown", key=charge.key, error=clean_reason(note))
            raise _explain(error, "result", self.config.result) from None
        job.annotate(status=result.state)


def _validated(payment_id: str, row: Mapping[str, Any], config: PaymentsConfig) -> Charge:
    amount, currency, account, key = (row.get(name) for name in ("amount_minor", "currency", "account", "key"))
    if type(amount) is not int or amount <= 0:
        raise Reject(f"invalid_amount: payment {payment_id} needs an integer amount_minor above 0")
    if amount > config.max_minor:
        raise Reject(f"invalid_amount: payment {payment_id} is above {_setting('max_minor')}={config.max_minor}")
    # ASCII first: upper() turns other letters into ASCII ones.
    code = currency.upper() if isinstance(currency, str) and re.fullmatch("[A-Za-z]{3}", currency) else ""
    if code not in config.currencies:
        raise Reject(f"invalid_currency: the currency of payment {payment_id} is not in {_setting('currencies')}")
    if not _is_name(account, 255):
        raise Reject(f"invalid_account: payment {payment_id} needs an account of 1 to 255 characters")
    if not _is_name(key, 500):
        raise Reject(f"invalid_key: payment {payment_id} needs a key of 1 to 500 characters")
    return Charge(key, payment_id, amount, code, account)


def _is_name(value: Any, longest: int) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip()) and len(value) <= longest and not _CONTROL.search(value)


def _reserve(job: Job[PaymentMessage], provider: str, charge: Charge) -> dict[str, Any]:
    parts = [charge.payment_id, provider, charge.amount_minor, charge.currency, charge.account]
    try:
        rows = job.call(
            "queue_worker.payment_reserve",
            key=charge.key,
            payment_id=charge.payment_id,
            provider=provider,
            amount_minor=charge.amount_minor,
            currency=charge.currency,
            account=charge.account,
            fingerprint=hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
        )
    except CallRefused as error:
        if error.sqlstate != KEY_REUSE:
            raise
        raise Reject(
            f"key_reuse: the key of payment {charge.payment_id} was used before for another payment, amount, currency, "
            "account or provider; a new payment needs a new key"
        ) from None
    return rows[0]


def _ask(provider: PaymentProvider, charge: Charge, age: float) -> Result | None:
    """Return what became of an earlier attempt; None when the same key may be sent (again)."""
    try:
        return provider.find(charge)
    except CannotTell:
        # While the provider remembers the key, the repeated call itself is the safe question.
        if provider.key_lifetime is not None and age >= provider.key_lifetime:
            raise
        return None


def _charge(job: Job[PaymentMessage], provider: PaymentProvider, charge: Charge) -> Result:
    if job.cancelled:
        raise NotCharged("the run was stopped before the charge")
    try:
        return provider.charge(charge)
    except OutcomeUnknown as error:
        found = provider.find(charge) if error.stored else None
        if found is None:
            raise
        return found


def _steer(job: Job[PaymentMessage], charge: Charge, error: ProviderError) -> Retry | Reject:
    if isinstance(error, RequestRefused):
        return Reject(f"provider_refused: payment {charge.payment_id}: {error}")
    if isinstance(error, NotCharged) or job.attempt < job.max_attempts:
        return Retry(f"payment {charge.payment_id}: {error}", delay=error.retry_after)
    return Reject(
        f"unknown_outcome: payment {charge.payment_id}: {error}; look it up at the provider, record it with "
        "queue_worker.payment_finish(key, 'succeeded' or 'failed', provider_id, error), then redrive the message"
    )


def _explain(error: Exception, name: str, function: str) -> Exception:
    # Inside job.transaction() the error may be the driver's own, which has the code under the same name.
    if getattr(error, "sqlstate", None) in _NO_FUNCTION:
        return Retry(f"{_setting(name)} names {function}, which is missing or has other arguments: {error}")
    return error
