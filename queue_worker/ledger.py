"""`once`: a ledger around an outside call, so that a message that runs twice does not call twice without anybody
knowing. The rules are those of payments: reserve, commit, call, record; see sql/0017_once.sql.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from queue_worker.durations import Duration, seconds
from queue_worker.errors import CallRefused, CallUnderWay, KeyReuse, OutcomeUnknown, TransportUnavailable, UsageError
from queue_worker.message import clean_text
from queue_worker.sending import fingerprint, json_text, to_json_data

UnknownPolicy = Literal["raise", "retry"]
"""What to do with a call whose outcome nobody knows: raise OutcomeUnknown, or call again under the same key."""

Call = Callable[[str, Mapping[str, Any]], Sequence[Mapping[str, Any]]]
"""Calls one SQL function in a transaction of its own that has committed when it returns; returns its rows."""

_KEY_REUSE = "QWO01"
_RECORD_SECONDS = 20.0


def call_once(
    call: Call,
    owner: str,
    key: str,
    fn: Callable[..., Any],
    args: Sequence[Any],
    compared: Any,
    unknown: UnknownPolicy,
    within: Duration,
) -> Any:
    """Call `fn(key, *args)` unless its outcome is recorded, and return what it returned, as JSON data.

    `owner` is equal for two runs of which the earlier one is over. `compared` is what must be the same whenever the key
    is used. See `Job.once`.
    """
    if unknown not in ("raise", "retry"):
        raise UsageError(f"once: unknown must be 'raise' or 'retry', not {unknown!r:.40}")
    digest = fingerprint(to_json_data(compared, "once: an argument"), "once: an argument")
    before = _reserve(
        call,
        {
            "key": key,
            "request_hash": digest,
            "owner": owner,
            "hold_seconds": seconds(within, "once: within"),
            "again": unknown == "retry",
        },
    )
    if before["state"] == "done":
        return before["value"]
    if before["state"] == "unknown" and unknown == "raise":
        raise OutcomeUnknown(
            f"unknown_outcome: nobody knows whether the call {key!r:.80} took place; look it up, record it with"
            " queue_worker.once_finish(key, 'done' or 'failed', value), then redrive the message"
        )
    return _made(call, key, fn, args)


def _reserve(call: Call, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what was known of the key before; raises KeyReuse, CallUnderWay or UsageError."""
    key = params["key"]
    try:
        (before,) = call("queue_worker.once_reserve", params)
    except CallRefused as error:
        if error.sqlstate == _KEY_REUSE:
            raise KeyReuse(f"key_reuse: {key!r:.80} was used before with other arguments") from None
        raise UsageError(f"once: {error}") if error.sqlstate == "22023" else error from None
    if before["state"] == "busy":
        # A second later, so that it does not come a moment too soon.
        raise CallUnderWay(f"somebody else is at the call {key!r:.80}", delay=before["busy_seconds"] + 1.0)
    return before


def _made(call: Call, key: str, fn: Callable[..., Any], args: Sequence[Any]) -> Any:
    try:
        returned = fn(key, *args)
    except OutcomeUnknown as error:
        _record(call, key, "unknown", None, error)
        raise
    except Exception as error:
        _record(call, key, "failed", None, error)
        raise
    # A BaseException, such as the end of the process, records nothing: the next run finds the call unknown.
    what = "once: what the function returned"
    try:
        value = to_json_data(returned, what)
        text = json_text(value, what)
    except UsageError as error:
        # The call has taken place; it must not be repeated because its answer cannot be kept.
        _record(call, key, "done", None, error)
        raise
    _record(call, key, "done", text, None)
    return value


def _record(call: Call, key: str, state: str, value: str | None, error: BaseException | None) -> None:
    """Record an outcome, `value` as JSON text.

    Waits out a short loss of the database, because giving up makes the call unknown.
    """
    params = {
        "key": key,
        "state": state,
        "value": value,
        "error": None if error is None else clean_text(f"{type(error).__name__}: {error}"),
    }
    for attempt in Retrying(
        retry=retry_if_exception_type(TransportUnavailable),
        wait=wait_exponential(multiplier=0.1, max=2),
        stop=stop_after_delay(_RECORD_SECONDS),
        reraise=True,
    ):
        with attempt:
            call("queue_worker.once_finish", params)
