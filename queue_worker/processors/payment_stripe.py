"""Stripe as a payment provider, through the official client; imported only when used.

The account of a payment is `pm_...` (a payment method), `cus_...` (a customer, charged on the default payment
method) or `cus_.../pm_...` (a customer's own payment method, which Stripe refuses without the customer).
Sources of the rules: https://docs.stripe.com/api/idempotent_requests, /api/errors, /currencies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from queue_worker.errors import ConfigError
from queue_worker.processors.payment_providers import (
    CannotTell,
    Charge,
    OutcomeUnknown,
    ProviderError,
    RequestRefused,
    Result,
)
from queue_worker.processors.payment_stripe_errors import translate
from queue_worker.processors.payment_stripe_results import (
    CAPTURE_KEY_FIELD,
    KEY_FIELD,
    capture_result,
    intent_result,
    refund_result,
    stripe_key,
)

if TYPE_CHECKING:
    import stripe

ODD_CURRENCIES = frozenset({"ISK", "MGA", "UGX"})
"""Stripe counts these in another unit than ISO 4217 does, so an amount would be off by a factor of 100."""

_CLOCK_MARGIN = 300  # seconds that Stripe's clock may differ from the database's
_IN_FLIGHT_MARGIN = 3600  # seconds that a request of an earlier attempt may have been under way
_PAGE = 100
_MAX_PAGES = 50
_ACCOUNT = re.compile(r"(?:(?P<customer>cus_\w+)/)?(?P<method>(?:pm|card|src)_\w+)|(?P<alone>cus_\w+)", re.ASCII)


class StripeProvider:
    """Charges with a confirmed PaymentIntent, off session: the payer is not there and cannot authenticate.

    Authorizes with one whose capture is manual (cards hold it for about 7 days).

    `timeouts`: seconds to connect, and between two pieces of an answer. Raises ConfigError when the package is
    missing or `api_key` is not a secret key.
    """

    name = "stripe"
    key_lifetime = 86_400.0  # "at least 24 hours", Stripe's words

    def __init__(
        self, api_key: str, *, api_base: str | None = None, timeouts: tuple[float, float] = (5.0, 20.0)
    ) -> None:
        if not re.match(r"(sk|rk)_", api_key):
            raise ConfigError("QUEUE_WORKER_STRIPE_API_KEY must be a secret key of Stripe: it begins with sk_ or rk_")
        library = _library()
        self._error: type[Exception] = library.StripeError
        self._http = library.RequestsClient(timeout=timeouts)
        # No retries inside the client: ours are spaced, counted, and ask before they repeat.
        self._client = library.StripeClient(
            api_key,
            http_client=self._http,
            max_network_retries=0,
            base_addresses={"api": api_base} if api_base else {},
        )

    def __repr__(self) -> str:
        return "StripeProvider()"

    def close(self) -> None:
        """Close the connections of this thread; those of other threads end with their threads."""
        self._http.close()

    def charge(self, charge: Charge) -> Result:
        """Create and confirm a PaymentIntent; see PaymentProvider."""
        account = _ACCOUNT.fullmatch(charge.account)
        if account is None:
            return Result("failed", None, "invalid_account: must be pm_..., cus_... or cus_.../pm_...")
        try:
            customer = account["customer"] or account["alone"]
            method = account["method"] or self._default_method(account["alone"])
            if method is None:
                return Result("failed", None, "no_payment_method: the customer has no default payment method")
            params: stripe.params.PaymentIntentCreateParams = {
                "amount": charge.amount_minor,
                "currency": charge.currency.lower(),
                "payment_method": method,
                # Whatever the account accepts, short of redirects, which would need a return_url and a browser.
                "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
                "confirm": True,
                "off_session": True,
                "metadata": {KEY_FIELD: stripe_key(charge.key), "payment_id": charge.payment_id[:500]},
            }
            if charge.action == "authorize":
                params["capture_method"] = "manual"
            if customer:
                params["customer"] = customer
            intent = self._client.v1.payment_intents.create(params, {"idempotency_key": stripe_key(charge.key)})
            return self._result(intent.to_dict())
        except self._error as error:
            return _answer(error)

    def capture(self, charge: Charge) -> Result:
        """Capture the authorized PaymentIntent, at most what was authorized; see PaymentProvider."""
        try:
            intent = self._client.v1.payment_intents.capture(
                _payment(charge),
                {
                    "amount_to_capture": charge.amount_minor,
                    "metadata": {CAPTURE_KEY_FIELD: stripe_key(charge.key)},
                },
                {"idempotency_key": stripe_key(charge.key)},
            )
        except self._error as error:
            return _answer(error)
        return capture_result(intent.to_dict(), charge.key) or Result("pending", intent.id, "it is not captured yet")

    def refund(self, charge: Charge) -> Result:
        """Refund a part of the PaymentIntent, or all of it; see PaymentProvider."""
        try:
            refund = self._client.v1.refunds.create(
                {
                    "payment_intent": _payment(charge),
                    "amount": charge.amount_minor,
                    "metadata": {KEY_FIELD: stripe_key(charge.key), "payment_id": charge.payment_id[:500]},
                },
                {"idempotency_key": stripe_key(charge.key)},
            )
        except self._error as error:
            return _answer(error)
        return refund_result(refund.to_dict())

    def find(self, charge: Charge) -> Result | None:
        """Look for what was made with the key; see PaymentProvider."""
        try:
            match charge.action:
                case "capture":
                    intent = self._client.v1.payment_intents.retrieve(_payment(charge))
                    return capture_result(intent.to_dict(), charge.key)
                case "refund":
                    return self._find_refund(charge)
            return self._find_charge(charge)
        except self._error as error:
            answer = translate(error)
            raise answer if isinstance(answer, ProviderError) else OutcomeUnknown(answer.error or "refused") from None

    def _find_refund(self, charge: Charge) -> Result | None:
        params: stripe.params.RefundListParams = {"payment_intent": _payment(charge), "limit": _PAGE}
        for _ in range(_MAX_PAGES):
            page = self._client.v1.refunds.list(params).to_dict()
            for refund in page["data"]:
                if (refund.get("metadata") or {}).get(KEY_FIELD) == stripe_key(charge.key):
                    return refund_result(refund)
            if not page["has_more"]:
                return None
            params["starting_after"] = page["data"][-1]["id"]
        raise CannotTell(f"more than {_MAX_PAGES * _PAGE} refunds of this payment at Stripe")

    def _find_charge(self, charge: Charge) -> Result | None:
        # Lists instead of searching: Stripe's search may lag by a minute to an hour, and a charge that it does not see
        # yet would be made twice.
        intents = self._intents_of(charge)
        if not intents:
            return None
        # Only a key that Stripe had forgotten can have made several; one that succeeded settles it.
        order = {
            "succeeded": 0,
            "requires_capture": 0,
            "processing": 1,
            "requires_action": 2,
            "requires_confirmation": 2,
        }
        best = min(intents, key=lambda intent: order.get(intent["status"], 3))
        if (best["amount"], best["currency"].upper()) != (charge.amount_minor, charge.currency):
            raise RequestRefused("Stripe knows this payment key with another amount or currency")
        return self._result(best)

    def _intents_of(self, charge: Charge) -> list[dict[str, Any]]:
        params: stripe.params.PaymentIntentListParams = {"limit": _PAGE}
        if charge.since is not None:
            created: stripe.params.PaymentIntentListParamsCreated = {"gte": int(charge.since) - _CLOCK_MARGIN}
            if charge.until is not None:
                created["lte"] = int(charge.until) + _IN_FLIGHT_MARGIN
            params["created"] = created
        account = _ACCOUNT.fullmatch(charge.account)
        if account and (customer := account["customer"] or account["alone"]):
            params["customer"] = customer
        key = stripe_key(charge.key)
        found: list[dict[str, Any]] = []
        for _ in range(_MAX_PAGES):
            page = self._client.v1.payment_intents.list(params).to_dict()
            found += [one for one in page["data"] if (one.get("metadata") or {}).get(KEY_FIELD) == key]
            if not page["has_more"]:
                return found
            params["starting_after"] = page["data"][-1]["id"]
        if found:
            return found
        raise CannotTell(f"more than {_MAX_PAGES * _PAGE} payments at Stripe since this one began")

    def _default_method(self, customer_id: str) -> str | None:
        customer = self._client.v1.customers.retrieve(customer_id).to_dict()
        settings: Mapping[str, Any] = customer.get("invoice_settings") or {}
        method: str | None = settings.get("default_payment_method") or customer.get("default_source")
        return method

    def _result(self, intent: Mapping[str, Any]) -> Result:
        if intent["status"] == "requires_action":
            self._cancel(intent["id"])
            return Result("failed", intent["id"], "authentication_required: the payer must confirm this payment")
        return intent_result(intent)

    def _cancel(self, intent_id: str) -> None:
        # Nobody is there to authenticate; cancelled, so that it cannot be paid after we called it failed.
        try:
            self._client.v1.payment_intents.cancel(intent_id)
        except self._error:
            raise OutcomeUnknown("the PaymentIntent waits for the payer and could not be cancelled") from None


def _payment(charge: Charge) -> str:
    assert charge.payment, "a capture or refund without its payment"  # noqa: S101
    return charge.payment


def _answer(error: Any) -> Result:
    """Return the failed Result that an error of Stripe means; raises the ProviderError that it is otherwise."""
    answer = translate(error)
    if isinstance(answer, ProviderError):
        raise answer from None
    return answer


def _library() -> Any:
    try:
        import stripe
    except ImportError:
        raise ConfigError(
            "QUEUE_WORKER_PAYMENTS_PROVIDER=stripe needs the package stripe: pip install 'queue-worker[stripe]'"
        ) from None
    return stripe
