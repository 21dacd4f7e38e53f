"""What a program with a web framework of its own calls for payments: the route that takes a provider's webhooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from loguru import logger

from queue_worker.config import Settings, load_settings
from queue_worker.errors import ConfigError
from queue_worker.log import register_secret
from queue_worker.processors.payment_webhook import TOLERANCE_SECONDS, InvalidSignature, read_event

__all__ = ["InvalidSignature", "Settled", "handle_webhook"]

SqlCall = Callable[..., list[dict[str, Any]]]
"""call(function, **named arguments) -> rows; as `Job.call`."""


class Settled(NamedTuple):
    """What became of one payment that a webhook was about; the values are those of SQL `queue_worker.settle_payment`.

    outcome: settled, known, conflict, mismatch or not_ours. key: of the payment in the ledger. state: what the ledger
    says now. message: what was done with the message that waited for it.
    """

    outcome: str
    key: str
    state: str | None
    message: str | None


def handle_webhook(
    body: bytes,
    signature: str,
    *,
    settings: Settings | None = None,
    call: SqlCall | None = None,
    tolerance: int = TOLERANCE_SECONDS,
) -> list[Settled]:
    """Check a webhook of Stripe and settle the payments that it is about; safe to repeat, and in any order.

    `body`: the raw body; `signature`: the header Stripe-Signature. `settings`: those of the environment where None.
    `call`: the caller's way to the database; without it a connection is opened for this call. An event that is not
    about an outcome of ours gives an empty list and is to be answered with 200 too. Raises InvalidSignature (answer
    400), and ConfigError or TransportError (answer 5xx: Stripe sends it again).
    """
    settings = settings or load_settings()
    if settings.stripe_webhook_secret is None:
        raise ConfigError("QUEUE_WORKER_STRIPE_WEBHOOK_SECRET is not set: the endpoint's secret, whsec_...")
    secret = settings.stripe_webhook_secret.get_secret_value()
    register_secret(secret)
    settlements = read_event(body, signature, secret, tolerance=tolerance)
    if not settlements:
        return []
    if call is not None:
        return [_settle(call, one._asdict()) for one in settlements]
    from queue_worker.opening import open_database

    settings.require_database()
    database = open_database(settings)
    try:
        transport = database.transport()
        return [
            _settle(lambda function, **params: transport.call(function, params).dicts(), one._asdict())
            for one in settlements
        ]
    finally:
        database.close()


def _settle(call: SqlCall, settlement: dict[str, Any]) -> Settled:
    [row] = call("queue_worker.settle_payment", provider="stripe", **settlement)
    settled = Settled(row["outcome"], row["payment"], row["recorded"], row["message"])
    if settled.outcome in ("conflict", "mismatch"):
        logger.warning(
            "payment {} at Stripe ({}) does not fit the ledger: {}; see the view queue_worker.audit",
            settlement["state"],
            settlement["provider_id"],
            settled.outcome,
        )
    return settled
