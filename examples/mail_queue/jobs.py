"""The mails of a shop. Copy this file: `app` is what the worker runs, the functions are what the shop calls.

The processor of queue `email` is built in, so there is no handler here. The functions send to the database that
`DATABASE_URL` (or `.env`) names, and return the ids of the messages.
"""

from __future__ import annotations

from collections.abc import Iterable

from queue_worker import App, Outgoing

SHOP = "Lavka"

app = App()
email = app.queue("email")


def order_confirmed(order: int, address: str, total: str) -> int:
    """Confirm an order. The key names the mail: it is sent once, however often this is called."""
    return email.send(
        {
            "to": address,
            "subject": f"Your order {order}",
            "text": f"Thank you. We received your order {order} over {total}.\n",
            "key": f"order:{order}:confirmed",
        }
    )


def welcome(name: str, address: str) -> int:
    """Greet a customer, by the template `welcome`."""
    context = {"name": name, "product": SHOP, "url": "https://lavka.example/start"}
    return email.send({"to": f"{name} <{address}>", "template": "welcome", "context": context})


def password_reset(name: str, address: str, token: str) -> int:
    """Send the link for a password, before all other mail; after half an hour it would be of no use."""
    context = {"name": name, "minutes": 30, "url": f"https://lavka.example/reset/{token}"}
    return email.send(
        {"to": address, "template": "password_reset", "context": context}, priority=50, expires_in="30 minutes"
    )


def newsletter(issue: str, text: str, readers: Iterable[str]) -> list[int]:
    """Send one mail to each reader, all in one transaction; one mail for an issue and a reader."""
    return email.send_batch(
        Outgoing(
            {
                "to": reader,
                "subject": f"{SHOP} news: {issue}",
                "text": text,
                "unsubscribe_mailto": "unsubscribe@lavka.example",
                "key": f"news:{issue}:{reader}",
            }
        )
        for reader in readers
    )
