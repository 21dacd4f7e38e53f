"""`queue-worker payments`: look at the ledger of payments, and end what stays unknown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from queue_worker.cli import common
from queue_worker.cli.common import AsJson
from queue_worker.cli.database import Operator, database
from queue_worker.cli.output import first_line, print_fields, print_json, print_table
from queue_worker.config import Settings
from queue_worker.errors import CallRefused, ConfigError, UsageError

_NO_KEY, _OPPOSITE, _RUNNING = "QWP02", "QWP03", "55006"

Key = Annotated[str, typer.Argument(metavar="KEY", help="The payment's key.", show_default=False)]

_MESSAGE = {
    "released": "its message runs now",
    "waiting": "its message is due",
    "redriven": "its dead letter was sent again",
    "sent": "its message was gone; a new one tells your table",
    "running": "its message runs already",
    "gone": "no message waits for it",
}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = common.group("payments", "Look at payments and end unknown ones.")
    common.command(group, "list")(list_payments)
    common.command(group, "show")(show)
    common.command(group, "resolve")(resolve)


def list_payments(
    unknown: Annotated[bool, typer.Option("--unknown", help="Only those without an outcome, oldest first.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="Show so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List the payments of the ledger, the latest first."""
    with database(common.settings()) as operator:
        rows = operator.call("list_payments", open_only=unknown, max_count=limit)
    if as_json:
        print_json(rows)
        return
    if not rows:
        print("no payment is without an outcome" if unknown else "there are no payments")
        return
    columns = ("key", "action", "state", "amount_minor", "currency", "provider", "attempts", "updated_at")
    print_table((*columns, "error"), [(*(row[column] for column in columns), first_line(row["error"])) for row in rows])


def show(
    key: Key,
    ask: Annotated[bool, typer.Option("--ask", help="Ask the provider too; changes nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one payment and its message. With --ask also what the provider says about it."""
    settings = common.settings()
    with database(settings) as operator:
        row = _payment(operator, key)
        shown: dict[str, Any] = {"key": key, **row, "message": _message(operator, row)}
        if ask:
            shown["provider_says"] = _ask(settings, operator, key, row).text
    for name in ("since", "until", "age"):
        del shown[name]
    if as_json:
        print_json(shown)
    else:
        print_fields({name: value for name, value in shown.items() if value is not None})


def resolve(
    key: Key,
    outcome: Annotated[str, typer.Argument(metavar="succeeded|failed", help="What became of it.", show_default=False)],
    provider_id: Annotated[
        str | None, typer.Option("--provider-id", metavar="ID", help="The provider's id of it.")
    ] = None,
    note: Annotated[str | None, typer.Option("--note", metavar="TEXT", help="Why; it is kept.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Even where the provider says otherwise.")] = False,
    as_json: AsJson = False,
) -> None:
    """Record what became of a payment. The provider is asked first; the message ends accordingly."""
    if outcome not in ("succeeded", "failed"):
        raise UsageError(f"say succeeded or failed, not {outcome!r:.40}")
    settings = common.settings()
    with database(settings) as operator:
        row = _payment(operator, key)
        answer = _ask(settings, operator, key, row)
        if not as_json:
            print(f"the provider says: {answer.text}", flush=True)
        if answer.contradicts(outcome) and not force:
            raise UsageError(f"the provider says otherwise ({answer.text}): record that, or add --force")
        if answer.state == outcome:
            provider_id = provider_id or answer.provider_id
        done = _record(operator, key, outcome, provider_id, note)
    if as_json:
        print_json({"key": key, "state": done["recorded"], "provider_says": answer.text, "message": done["message"]})
        return
    already = " already" if done["outcome"] == "known" else ""
    print(f"payment {key} is{already} recorded as {done['recorded']}; {_MESSAGE.get(done['message'], done['message'])}")


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the provider says; `state` is succeeded, failed, none (it never acted on the key), or None: no answer."""

    text: str
    state: str | None = None
    provider_id: str | None = None

    def contradicts(self, outcome: str) -> bool:
        """Whether the provider knows better than somebody who says `outcome`."""
        return self.state is not None and self.state != outcome and not (self.state == "none" and outcome == "failed")


def _payment(operator: Operator, key: str) -> dict[str, Any]:
    rows = operator.call("payment", key=key)
    if not rows:
        raise UsageError(f"no payment has the key {key!r:.200}; `queue-worker payments list` shows those there are")
    return rows[0]


def _message(operator: Operator, row: dict[str, Any]) -> str | None:
    """Return where the message of a payment is, as text."""
    found = operator.call("message", queue="payments", msg_id=row["msg_id"]) if row["msg_id"] is not None else []
    mine = [one for one in found if str((one["payload"] or {}).get("id")) == row["payment_id"]]
    return f"{row['msg_id']}: {mine[0]['state']}" if mine else None


def _ask(settings: Settings, operator: Operator, key: str, row: dict[str, Any]) -> _Answer:
    """Ask the provider what became of a payment; every obstacle is an answer too."""
    from queue_worker.builtin import payments_config
    from queue_worker.processors.payment_providers import Charge, ProviderError
    from queue_worker.processors.payments import provider_of

    if row["provider"] != settings.payments_provider:
        return _Answer(f"nothing: QUEUE_WORKER_PAYMENTS_PROVIDER is not {row['provider']} here")
    try:
        factory, close = provider_of(payments_config(settings))
    except ConfigError as error:
        return _Answer(f"nothing: {error}")
    payment = None
    if row["payment_key"] is not None:
        parents = operator.call("payment", key=row["payment_key"])
        payment = parents[0]["provider_id"] if parents else None
        if payment is None:
            return _Answer("nothing: the payment that it belongs to has no provider's id here")
    charge = Charge(
        key=key,
        payment_id=row["payment_id"],
        amount_minor=row["amount_minor"],
        currency=row["currency"],
        account=row["account"],
        since=row["since"],
        until=row["until"],
        action=row["action"],
        payment=payment,
    )
    try:
        found = factory(lambda function, **params: operator.call(function.partition(".")[2], **params)).find(charge)
    except ProviderError as error:
        return _Answer(f"no answer: {error}")
    finally:
        if close is not None:
            close()
    if found is None:
        return _Answer("it has not acted on this key", "none")
    reason = f", {found.error}" if found.error else ""
    state = None if found.state == "pending" else found.state
    return _Answer(f"{found.state} ({found.provider_id}{reason})", state, found.provider_id)


def _record(operator: Operator, key: str, state: str, provider_id: str | None, note: str | None) -> dict[str, Any]:
    try:
        [done] = operator.call("resolve_payment", key=key, state=state, provider_id=provider_id, note=note)
    except CallRefused as error:
        if error.sqlstate == _RUNNING:
            raise UsageError("a worker is at this payment right now; try again when its run has ended") from None
        if error.sqlstate == _OPPOSITE:
            raise UsageError(f"payment {key!r:.200} is final: the opposite of {state} is recorded") from None
        if error.sqlstate == _NO_KEY:
            raise UsageError(f"no payment has the key {key!r:.200}") from None
        raise
    return done
