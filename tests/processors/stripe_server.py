"""Starts and steers a local Stripe, see stripe_server_app.py: a process of its own, on a free port."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

APP = Path(__file__).with_name("stripe_server_app.py")

PAYMENTS = "/v1/payment_intents"


class StripeServer:
    """The server's process and its controls; `port` is on 127.0.0.1."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, str(APP)], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the local Stripe did not start; is localstripe installed?"
        self.port = int(line)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def reset(self) -> None:
        """Forget all objects, keys, faults and requests."""
        self._control("reset", {})

    def script(self, *steps: dict[str, Any]) -> None:
        """Say how the next requests end; afterwards they run normally.

        A step may hold: on (method and path; default: creating a PaymentIntent), status, error (the error object),
        headers, charge (true: run the request before that answer), hold (true: wait for `release` with the answer).
        """
        self._control("script", list(steps))

    def release(self) -> None:
        """Let a held request go on."""
        self._control("release", {})

    def held(self) -> bool:
        """Whether a request is being held."""
        return bool(self._control("state", {})["held"])

    def requests(self, path: str = PAYMENTS, method: str = "POST") -> list[dict[str, Any]]:
        """Return the requests to `path` so far: key, status, replayed, body."""
        seen = self._control("state", {})["requests"]
        return [one for one in seen if (one["path"], one["method"]) == (path, method)]

    def charges(self) -> list[dict[str, Any]]:
        """Return the charges that succeeded: id, amount, currency, payment_intent."""
        charges: list[dict[str, Any]] = self._control("state", {})["charges"]
        return charges

    def refunds(self) -> list[dict[str, Any]]:
        """Return the refunds: id, amount, payment_intent."""
        refunds: list[dict[str, Any]] = self._control("state", {})["refunds"]
        return refunds

    def forget_keys(self) -> None:
        """Forget the idempotency keys, as Stripe may after 24 hours."""
        self._control("forget", {})

    def _control(self, act: str, body: Any) -> Any:
        request = urllib.request.Request(f"{self.url}/_test/{act}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
