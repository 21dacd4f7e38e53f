"""The seam between the engine and whoever watches it: logs, metrics, traces and tests subscribe here.

Names are `noun.past`, for example `message.started`, `message.done`, `worker.ready`; the fields of each are
documented where it is emitted. Subscribers are called on the emitting thread, so they must be quick.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from loguru import logger

Subscriber = Callable[[str, dict[str, Any]], None]

_lock = threading.Lock()
_subscribers: dict[str, tuple[Subscriber, ...]] = {}


def subscribe(name: str, subscriber: Subscriber) -> Callable[[], None]:
    """Call `subscriber(name, fields)` for every event called `name` ('*': every event).

    Returns a function that ends the subscription.
    """
    with _lock:
        _subscribers[name] = (*_subscribers.get(name, ()), subscriber)

    def unsubscribe() -> None:
        with _lock:
            left = tuple(one for one in _subscribers.get(name, ()) if one is not subscriber)
            if left:
                _subscribers[name] = left
            else:
                _subscribers.pop(name, None)

    return unsubscribe


def wanted(name: str) -> bool:
    """Whether anybody listens to `name`; lets hot paths skip building the fields."""
    return name in _subscribers or "*" in _subscribers


def emit(name: str, **fields: Any) -> None:
    """Tell every subscriber of `name`; a subscriber that raises is logged and never breaks the caller."""
    if not _subscribers:
        return
    for subscriber in _subscribers.get(name, ()) + _subscribers.get("*", ()):
        try:
            subscriber(name, fields)
        except Exception:
            logger.exception("a subscriber of {} failed", name)


@contextmanager
def capture(name: str = "*") -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Collect the events called `name` while the block runs; for tests."""
    seen: list[tuple[str, dict[str, Any]]] = []
    end = subscribe(name, lambda event, fields: seen.append((event, fields)))
    try:
        yield seen
    finally:
        end()
