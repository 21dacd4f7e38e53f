"""A local Stripe: localstripe, with the parts that matter to idempotency added. Run as a script.

A script, so that localstripe (licensed under the GPL, for development only) is never imported by tests or package.

Added to localstripe 1.15: Idempotency-Key as Stripe documents it (the first answer is replayed, errors 402 and 500
included; 400 for other parameters; 409 while the first request is under way), `created` and `customer` filters and
newest-first order when PaymentIntents are listed, captures with metadata and `amount_received`, refunds that cannot
exceed what was captured, and a script of faults under /_test/.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from localstripe.errors import UserError
from localstripe.resources import List, PaymentIntent, Refund, Store, store
from localstripe.server import app

PAYMENTS = "/v1/payment_intents"
Handler = Callable[[web.Request], Awaitable[Any]]


@dataclass
class Answer:
    """What was answered to a key, to be given again."""

    fingerprint: str
    status: int = 0
    body: str = ""
    done: bool = False


class Extras:
    """What localstripe lacks."""

    def __init__(self) -> None:
        self.keys: dict[str, Answer] = {}
        self.script: deque[dict[str, Any]] = deque()
        self.requests: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.held = 0

    async def handle(self, request: web.Request, handler: Handler) -> Any:
        if request.path.startswith("/_test/"):
            return await self.control(request)
        key = request.headers.get("Idempotency-Key")
        seen = {
            "method": request.method,
            "path": request.path,
            "query": request.query_string,
            "key": key,
            "body": (await request.read()).decode(),
            "status": None,
            "replayed": False,
        }
        self.requests.append(seen)
        if key and request.method == "POST":
            answer = await self.idempotent(request, handler, key)
        else:
            answer = await self.scripted(request, handler)
        seen["status"], seen["replayed"] = answer.status, "Idempotent-Replayed" in answer.headers
        return answer

    async def idempotent(self, request: web.Request, handler: Handler, key: str) -> Any:
        fingerprint = f"{request.method} {request.path} {(await request.read()).decode()}"
        known = self.keys.get(key)
        if known is None:
            known = self.keys[key] = Answer(fingerprint)
            answer = await self.scripted(request, handler)
            if answer.status in (400, 401, 403, 404, 429):  # Stripe keeps answers from the moment of execution only
                del self.keys[key]
            known.status, known.body, known.done = answer.status, answer.text, True
            return answer
        if known.fingerprint != fingerprint:
            text = "Keys for idempotent requests can only be used with the same parameters they were first used with."
            return error(400, {"type": "idempotency_error", "message": text})
        if not known.done:
            text = "There is currently another in-progress request using this Idempotent Key."
            return error(409, {"type": "idempotency_error", "code": "idempotency_key_in_use", "message": text})
        return web.Response(
            text=known.body,
            status=known.status,
            content_type="application/json",
            headers={"Idempotent-Replayed": "true"},
        )

    async def scripted(self, request: web.Request, handler: Handler) -> Any:
        """Run one request as the script says, see StripeServer.script."""
        if request.path.endswith("/capture"):
            handler = capture
        if not self.script or f"{request.method} {request.path}" != self.script[0].get("on", f"POST {PAYMENTS}"):
            return await handler(request)
        step = self.script.popleft()
        answer = await handler(request) if step.get("charge", "status" not in step) else None
        if step.get("hold"):
            self.held += 1
            await self.gate.wait()
            self.held -= 1
        if "status" not in step:
            return answer
        return error(
            step["status"], {"type": "api_error", "message": "scripted", **step.get("error", {})}, step.get("headers")
        )

    async def control(self, request: web.Request) -> Any:
        body = await request.json()
        match request.path.rpartition("/")[2]:
            case "reset":
                store.clear()
                self.keys.clear()
                self.script.clear()
                self.requests.clear()
                self.gate.clear()
            case "script":
                self.script.extend(body)
            case "release":
                self.gate.set()
            case "forget":
                self.keys.clear()
        refunds = [
            {"id": one.id, "amount": one.amount, "payment_intent": one.payment_intent}
            for name, one in store.items()
            if name.startswith("refund:")
        ]
        charges = [
            {"id": one.id, "amount": one.amount, "currency": one.currency, "payment_intent": one.payment_intent}
            for name, one in store.items()
            if name.startswith("charge:") and one.status == "succeeded"
        ]
        return web.json_response({"held": self.held, "requests": self.requests, "charges": charges, "refunds": refunds})


def error(status: int, details: dict[str, Any], headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": details}, status=status, headers=headers)


def list_payments(
    _cls: Any, url: str, created: Any = None, customer: Any = None, limit: Any = None, starting_after: Any = None
) -> Any:
    found = List(url, limit=limit, starting_after=starting_after)
    bounds = {name: int(value) for name, value in (created or {}).items()}
    found._list = [
        one
        for name, one in reversed(list(store.items()))
        if name.startswith("payment_intent:")
        and customer in (None, one.customer)
        and bounds.get("gte", 0) <= one.created <= bounds.get("lte", one.created)
    ]
    return found


create_payment = PaymentIntent._api_create


def create(_cls: Any, automatic_payment_methods: Any = None, **data: Any) -> Any:
    # localstripe refuses this parameter, which its old version of the API did not have.
    return create_payment(**data)


async def capture(request: web.Request) -> web.Response:
    """What localstripe's own route does, with metadata and what Stripe refuses."""
    form = await request.post()
    intent = PaymentIntent._api_retrieve(request.path.split("/")[3])
    if intent.status != "requires_capture":
        return error(
            400, {"code": "payment_intent_unexpected_state", "message": f"It has a status of {intent.status}."}
        )
    amount = int(str(form.get("amount_to_capture") or intent.amount))
    if amount > intent.amount:
        return error(400, {"code": "amount_too_large", "message": "The amount is more than was authorized."})
    intent.latest_charge.captured = True
    intent.amount_received = amount
    given = {name[9:-1]: value for name, value in form.items() if name.startswith("metadata[")}
    intent.metadata = {**(intent.metadata or {}), **given}
    return web.json_response(intent._export())


make_refund = Refund.__init__


def refund(self: Any, payment_intent: str | None = None, amount: Any = None, **data: Any) -> None:
    intent = PaymentIntent._api_retrieve(payment_intent)
    if intent.status != "succeeded":
        raise UserError(400, "This payment has no captured charge.", {"code": "charge_not_refundable"})
    whole = getattr(intent, "amount_received", None) or intent.amount
    given = sum(
        one.amount for name, one in store.items() if name.startswith("refund:") and one.payment_intent == intent.id
    )
    if given >= whole:
        raise UserError(400, "The charge has already been refunded.", {"code": "charge_already_refunded"})
    if given + int(amount) > whole:
        raise UserError(
            400, f"The refund is greater than what is left ({whole - given}).", {"code": "amount_too_large"}
        )
    make_refund(self, payment_intent=payment_intent, amount=amount, **data)


async def serve() -> None:
    # localstripe writes everything to one file in /tmp, which parallel runs would share.
    Store.dump_to_disk = lambda self: None
    PaymentIntent._api_list_all = classmethod(list_payments)
    PaymentIntent._api_create = classmethod(create)
    Refund.__init__ = refund
    extras = Extras()

    @web.middleware
    async def added(request: web.Request, handler: Handler) -> Any:
        return await extras.handle(request, handler)

    app.middlewares.insert(0, added)
    # A request that its client has given up goes on, as it does at Stripe.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve())
