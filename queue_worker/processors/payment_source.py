"""What a message of queue `payments` asks for, read from the row that it names: never from the message itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeGuard

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints

from queue_worker.errors import CallRefused, Reject, Retry
from queue_worker.processor import Job
from queue_worker.processors.payment_config import PaymentsConfig, setting
from queue_worker.processors.payment_providers import Action, Charge

_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_NO_FUNCTION = ("42883", "3F000", "PGRST202")  # undefined function, undefined schema, and both over REST
_NOT_AN_ID = ("22P02", "22003")  # the source function could not cast the id
_LATER = ("capture", "refund")


def _id_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class PaymentMessage(BaseModel):
    """The payload: `id` of a row (text or integer) and the `action`; the rest, as `send_row` sends it, is ignored.

    A charge or authorization names the row of a payment, a capture or refund a row of its own. `key`, where given,
    must be the row's own key: it guards against a message meant for something else.
    """

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    id: Annotated[
        str, BeforeValidator(_id_text), StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")
    ]
    action: Action = "charge"
    key: str | None = None


def load(job: Job[PaymentMessage], config: PaymentsConfig) -> tuple[Charge, str | None]:
    """Read the row that the message names; returns what to do, and the key of the payment to capture or refund.

    Raises Reject for a row that may not be acted on, and Retry where a setting or function is missing.
    """
    payment_id, action = job.payload.id, job.payload.action
    for name in ("source", "result"):
        if not getattr(config, name):
            raise Retry(f"payments cannot run: {setting(name)} is not set, see sql/demo/payments.sql")
    arguments = {"id": payment_id} | ({} if action == "charge" else {"action": action})
    try:
        rows = job.call(config.source, **arguments)
    except CallRefused as error:
        if error.sqlstate in _NOT_AN_ID:
            raise Reject(f"not_found: {config.source} cannot read the id of the message") from None
        raise explain(error, "source", config.source, action) from None
    if len(rows) != 1:
        word, count = ("not_found", "no row") if not rows else ("ambiguous", f"{len(rows)} rows")
        raise Reject(f"{word}: {config.source} returned {count} for {action} {payment_id}")
    charge, payment_key = _validated(payment_id, action, rows[0], config)
    if job.payload.key is not None and job.payload.key != charge.key:
        raise Reject(f"key_mismatch: the message carries another key than the row of payment {payment_id}")
    return charge, payment_key


def parent_of(job: Job[PaymentMessage], payment_key: str, provider: str) -> dict[str, Any]:
    """Return the ledger row of the payment that a capture or refund belongs to.

    Raises Reject where there is none that could be, and Retry while its outcome is not known.
    """
    payment_id, action = job.payload.id, job.payload.action
    rows = job.call("queue_worker.payment", key=payment_key)
    if not rows:
        raise Reject(f"not_found: the payment that {action} {payment_id} belongs to is not in the ledger")
    parent = rows[0]
    wanted = ("authorize",) if action == "capture" else ("charge", "authorize")
    if parent["action"] not in wanted or parent["provider"] != provider:
        raise Reject(
            f"invalid_payment: {action} {payment_id} belongs to a {parent['action']} at provider {parent['provider']};"
            f" it takes {' or '.join(wanted)} at {provider}"
        )
    if parent["state"] not in ("succeeded", "failed"):
        raise Retry(f"{action} {payment_id} waits: the outcome of its payment is not known yet")
    return parent


def explain(error: Exception, name: str, function: str, action: Action) -> Exception:
    """Return what to raise for an error of the user's function: Retry naming the setting where it is missing."""
    # Inside job.transaction() the error may be the driver's own, which has the code under the same name.
    if getattr(error, "sqlstate", None) not in _NO_FUNCTION:
        return error
    hint = "" if action == "charge" else f"; a {action} needs it with the argument action too, see sql/demo/refunds.sql"
    return Retry(f"{setting(name)} names {function}, which is missing or has other arguments{hint}: {error}")


def _validated(
    payment_id: str, action: Action, row: Mapping[str, Any], config: PaymentsConfig
) -> tuple[Charge, str | None]:
    amount, currency, account, key = (row.get(name) for name in ("amount_minor", "currency", "account", "key"))
    if type(amount) is not int or amount <= 0:
        raise Reject(f"invalid_amount: payment {payment_id} needs an integer amount_minor above 0")
    if amount > config.max_minor:
        raise Reject(f"invalid_amount: payment {payment_id} is above {setting('max_minor')}={config.max_minor}")
    # ASCII first: upper() turns other letters into ASCII ones.
    code = currency.upper() if isinstance(currency, str) and re.fullmatch("[A-Za-z]{3}", currency) else ""
    if code not in config.currencies:
        raise Reject(f"invalid_currency: the currency of payment {payment_id} is not in {setting('currencies')}")
    payment_key = row.get("payment_key") if action in _LATER else None
    if action in _LATER:
        account = ""  # that of the payment it belongs to
        if not _is_name(payment_key, 500):
            raise Reject(f"invalid_payment: {action} {payment_id} needs a payment_key of 1 to 500 characters")
    elif not _is_name(account, 255):
        raise Reject(f"invalid_account: payment {payment_id} needs an account of 1 to 255 characters")
    if not _is_name(key, 500) or key == payment_key:
        raise Reject(f"invalid_key: payment {payment_id} needs a key of its own of 1 to 500 characters")
    return Charge(key, payment_id, amount, code, account, action=action), payment_key


def _is_name(value: Any, longest: int) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip()) and len(value) <= longest and not _CONTROL.search(value)
