"""The built-in `payments` processor: does what a database row says, once, and tells the row what happened.

The message only names a row, and what to do: charge, authorize, capture or refund. Amount, currency, account and key
come from the user's source function; the ledger row, the user's result function and the ack commit together. Between
those two the ledger makes sure that every attempt uses one idempotency key, and that an attempt without an answer is
followed by a question, never by a second charge.

| what happened                                  | ledger    | message                                            |
|------------------------------------------------|-----------|----------------------------------------------------|
| charged, authorized, captured, refunded        | succeeded | done                                               |
| declined, or the row's values were refused     | failed    | done: the result function gets 'failed' and why    |
| no answer, 5xx, 409, still processing          | unknown   | retry; `unknown_outcome` at the last attempt       |
| 429, 503                                       | unknown   | uncharged: the queue pauses for its Retry-After    |
| wrong API key (401, 403)                       | unknown   | retry                                              |
| the request itself was refused (other 400, 404)| unknown   | dead letter `provider_refused`                     |
| the key belongs to another amount or payment   | unchanged | dead letter `key_reuse`                            |
| no row, or a row that may not be charged       | no row    | dead letter `not_found`, `invalid_amount`, ...     |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from queue_worker.errors import CallRefused, ConfigError, LeaseLost, Reject, Retry, TransportUnavailable, Unavailable
from queue_worker.processor import Job, Processor
from queue_worker.processors.payment_config import PaymentsConfig, setting
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
from queue_worker.processors.payment_source import PaymentMessage, explain, load, parent_of

__all__ = ["PaymentMessage", "Payments", "PaymentsConfig", "make_processor", "provider_of"]


def make_processor(config: PaymentsConfig, provider_factory: ProviderFactory | None = None) -> Processor:
    """Return the processor for queue `payments`.

    `provider_factory(call)` returns the provider for one job and replaces the one that `config.provider` names.
    Raises ConfigError: unknown provider, package or key of Stripe missing, a currency that Stripe counts differently.
    """
    close = None
    if provider_factory is None:
        provider_factory, close = provider_of(config)
    payments = Payments(config, provider_factory)
    return Processor("payments", payments.handle, model=PaymentMessage, builtin=True, close=close)


def provider_of(config: PaymentsConfig) -> tuple[ProviderFactory, Callable[[], None] | None]:
    """Return what makes the provider that `config` names, and what closes it; raises ConfigError as make_processor."""
    if config.provider == "stripe":
        stripe = _stripe(config)
        return (lambda call: stripe), stripe.close
    if config.provider == "sandbox":
        return SandboxProvider, None
    raise ConfigError(f"{setting('provider')} is {config.provider!r:.40}; known: sandbox, stripe")


def _stripe(config: PaymentsConfig) -> PaymentProvider:
    from queue_worker.processors.payment_stripe import (
        ODD_CURRENCIES,
        StripeProvider,
    )

    odd = sorted(ODD_CURRENCIES.intersection(config.currencies))
    if odd:
        raise ConfigError(
            f"{setting('currencies')}: Stripe counts {', '.join(odd)} in other units than ISO 4217; remove it"
        )
    return StripeProvider(config.stripe_api_key, api_base=config.stripe_api_base, timeouts=config.timeouts)


class Payments:
    """The handler; holds settings only, so that all threads share it."""

    def __init__(self, config: PaymentsConfig, provider_factory: ProviderFactory) -> None:
        self.config = config
        self._provider = provider_factory

    def handle(self, job: Job[PaymentMessage]) -> None:
        """Run one payment; see the table in the module's docstring. Raises Retry, Reject and Unavailable."""
        charge, payment_key = load(job, self.config)
        job.annotate(payment=charge.payment_id, amount=charge.amount_minor, currency=charge.currency)
        if charge.action != "charge":
            job.annotate(action=charge.action)
        provider = self._provider(job.call)
        refusal = None
        if payment_key is not None:
            parent = parent_of(job, payment_key, provider.name)
            charge = replace(charge, account=parent["account"], payment=parent["provider_id"])
            if parent["state"] == "failed" or not charge.payment:
                refusal = Result("failed", None, "payment_failed: the payment itself did not succeed")
        before = _reserve(job, provider.name, charge, payment_key)
        if before["state"] in ("succeeded", "failed"):
            # The same key is the same payment: report it again, never charge it again.
            self._finish(job, charge, Result(before["state"], before["provider_id"], before["error"]))
            return
        charge = replace(charge, since=before["since"], until=before["until"])
        self._finish(job, charge, refusal or self._attempt(job, provider, charge, before))

    def _attempt(
        self, job: Job[PaymentMessage], provider: PaymentProvider, charge: Charge, before: dict[str, Any]
    ) -> Result:
        """Ask about earlier attempts, else make one; returns a final result. Raises Retry, Reject and Unavailable."""
        try:
            result = _ask(provider, charge, before["age"]) if before["state"] == "unknown" else None
            if result is None:
                result = _act(job, provider, charge)
            if result.state == "pending":
                raise OutcomeUnknown(result.error or "the provider is still processing the payment")
        except ProviderError as error:
            rows = job.call("queue_worker.payment_unknown", key=charge.key, error=str(error))
            state = next(iter(rows[0].values())) if rows else None
            if state in ("succeeded", "failed"):
                # A webhook or a person has settled it meanwhile.
                [row] = job.call("queue_worker.payment", key=charge.key)
                return Result(row["state"], row["provider_id"], row["error"])
            job.annotate(status="unknown")
            raise _steer(job, charge, error) from None
        return result

    def _finish(self, job: Job[PaymentMessage], charge: Charge, result: Result) -> None:
        """Commit ledger, the user's row and the ack together."""
        told = {"id": charge.payment_id, "status": result.state}
        outcome = {"provider_id": result.provider_id, "error": result.error}
        action = {} if charge.action == "charge" else {"action": charge.action}
        try:
            job.finish_all(
                [
                    ("queue_worker.payment_finish", {"key": charge.key, "state": result.state, **outcome}),
                    (self.config.result, {**told, **outcome, **action}),
                ]
            )
        except (LeaseLost, TransportUnavailable):
            raise
        except Exception as error:
            note = f"{result.state} at the provider ({result.provider_id}), but it could not be recorded: {error}"
            job.call("queue_worker.payment_unknown", key=charge.key, error=clean_reason(note))
            raise explain(error, "result", self.config.result, charge.action) from None
        job.annotate(status=result.state)


def _reserve(job: Job[PaymentMessage], provider: str, charge: Charge, payment_key: str | None) -> dict[str, Any]:
    parts = [charge.payment_id, provider, charge.amount_minor, charge.currency, charge.account]
    if charge.action != "charge":
        parts += [charge.action, payment_key]
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
            action=charge.action,
            payment_key=payment_key,
            msg_id=job.msg_id,
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


def _act(job: Job[PaymentMessage], provider: PaymentProvider, charge: Charge) -> Result:
    if job.cancelled:
        raise NotCharged("the run was stopped before the provider was called")
    try:
        match charge.action:
            case "capture":
                return provider.capture(charge)
            case "refund":
                return provider.refund(charge)
        return provider.charge(charge)
    except OutcomeUnknown as error:
        found = provider.find(charge) if error.stored else None
        if found is None:
            raise
        return found


def _steer(job: Job[PaymentMessage], charge: Charge, error: ProviderError) -> Retry | Reject | Unavailable:
    if isinstance(error, RequestRefused):
        return Reject(f"provider_refused: payment {charge.payment_id}: {error}")
    if error.down:
        return Unavailable(f"payment {charge.payment_id}: {error}", delay=error.retry_after)
    if isinstance(error, NotCharged) or job.attempt < job.max_attempts:
        return Retry(f"payment {charge.payment_id}: {error}", delay=error.retry_after)
    return Reject(
        f"unknown_outcome: payment {charge.payment_id}: {error}; look it up at the provider, then say "
        "`queue-worker payments resolve KEY succeeded|failed` (`payments list --unknown` shows the key)"
    )
