"""`once`: the ledger around an outside call, state by state."""

from __future__ import annotations

import contextlib
import threading
from decimal import Decimal
from typing import Any

import psycopg
import pytest

import queue_worker
from queue_worker import App, CallUnderWay, Job, KeyReuse, OutcomeUnknown, Unavailable
from queue_worker.errors import UsageError
from tests.helpers import running, wait_until
from tests.sql.engine import Engine

pytestmark = pytest.mark.conformance(hosted=True)


class Provider:
    """An outside world that counts its calls; it does what `answer` says."""

    def __init__(self, answer: Any = "ok") -> None:
        self.answer = answer
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, key: str, *args: Any) -> Any:
        self.calls.append((key, *args))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def entry(engine: Engine, key: str = "k") -> Any:
    found = engine.rows("select state, value, error, attempts from queue_worker_data.once where key = %s", key)
    return found[0] if found else None


def forsake(engine: Engine) -> None:
    """Let the time end in which reserved calls may still be under way."""
    engine.rows("update queue_worker_data.once set until = clock_timestamp()")


def test_the_reservation_has_committed_before_the_call_is_made(engine: Engine) -> None:
    seen = []
    queue_worker.once("k", lambda key: seen.append(entry(engine)[0]))
    assert seen == ["reserved"]
    assert entry(engine) == ("done", None, None, 1)


def test_done_returns_the_stored_value_without_a_call(engine: Engine) -> None:
    provider = Provider({"id": "ch_1", "amount": Decimal("1.50"), "tags": ("a",)})
    first = queue_worker.once("k", provider, 7, "EUR")
    assert first == queue_worker.once("k", provider, 7, "EUR") == {"id": "ch_1", "amount": "1.50", "tags": ["a"]}
    assert provider.calls == [("k", 7, "EUR")]
    assert entry(engine).attempts == 1


@pytest.mark.parametrize("value", [None, "text", 5, [1, 2], [{"a": 1}], False])
def test_any_json_value_is_kept(engine: Engine, value: Any) -> None:
    assert queue_worker.once("k", Provider(value)) == value
    assert queue_worker.once("k", Provider("another")) == value


@pytest.mark.parametrize("error", [ValueError("declined"), Unavailable("503")])
def test_failed_is_called_again_under_the_same_key(engine: Engine, error: Exception) -> None:
    provider = Provider(error)
    with pytest.raises(type(error)):
        queue_worker.once("k", provider, 7)
    assert entry(engine)[:3] == ("failed", None, f"{type(error).__name__}: {error}")
    provider.answer = "ok"
    assert queue_worker.once("k", provider, 7) == "ok"
    assert provider.calls == [("k", 7)] * 2
    assert entry(engine) == ("done", "ok", None, 2)


def test_a_function_that_cannot_tell_makes_the_call_unknown(engine: Engine) -> None:
    provider = Provider(OutcomeUnknown("the answer was lost"))
    with pytest.raises(OutcomeUnknown, match="the answer was lost"):
        queue_worker.once("k", provider)
    assert entry(engine).state == "unknown"
    provider.answer = "ok"
    with pytest.raises(OutcomeUnknown, match="nobody knows whether the call 'k' took place"):
        queue_worker.once("k", provider)
    assert len(provider.calls) == 1


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(1)])
def test_reserved_and_left_is_unknown_and_retry_calls_again_under_the_same_key(
    engine: Engine, end: BaseException
) -> None:
    provider = Provider(end)
    with pytest.raises(type(end)):
        queue_worker.once("k", provider, 7)
    assert entry(engine).state == "reserved"
    forsake(engine)
    provider.answer = "ok"
    with pytest.raises(OutcomeUnknown):
        queue_worker.once("k", provider, 7)
    assert entry(engine).state == "unknown"
    assert queue_worker.once("k", provider, 7, unknown="retry") == "ok"
    assert provider.calls == [("k", 7)] * 2
    assert entry(engine) == ("done", "ok", None, 2)


def test_a_second_caller_does_not_call_while_the_first_is_at_it_and_the_first_still_records(engine: Engine) -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow(key: str) -> str:
        inside.set()
        assert leave.wait(30)
        return "first"

    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(queue_worker.once("k", slow, within="5m")))
    thread.start()
    assert inside.wait(30)
    try:
        for policy in ("raise", "retry"):
            with pytest.raises(CallUnderWay, match="somebody else is at the call 'k'") as refused:
                queue_worker.once("k", Provider(), unknown=policy)
            assert refused.value.delay is not None
            assert 240 < refused.value.delay <= 301
    finally:
        leave.set()
        thread.join()
    assert results == ["first"]
    assert queue_worker.once("k", Provider()) == "first"


def test_a_first_caller_that_took_too_long_still_records_what_others_found_unknown(engine: Engine) -> None:
    def slow(key: str) -> str:
        forsake(engine)
        with pytest.raises(OutcomeUnknown):
            queue_worker.once("k", Provider())
        return "late"

    assert queue_worker.once("k", slow) == "late"
    assert queue_worker.once("k", Provider()) == "late"


def test_a_person_resolves_what_is_unknown(engine: Engine) -> None:
    for key, state in (("a", "done"), ("b", "failed")):
        with pytest.raises(OutcomeUnknown):
            queue_worker.once(key, Provider(OutcomeUnknown("?")))
        engine.rows("select queue_worker.once_finish(%s, %s, '\"by hand\"')", key, state)
    provider = Provider("called")
    assert queue_worker.once("a", provider) == "by hand"
    assert queue_worker.once("b", provider) == "called"
    assert [key for (key,) in provider.calls] == ["b"]


def test_done_stays_done(engine: Engine) -> None:
    queue_worker.once("k", Provider("ok"))
    assert engine.value("select queue_worker.once_finish('k', 'failed')") == "done"
    assert entry(engine)[:2] == ("done", "ok")


@pytest.mark.parametrize("state", ["done", "failed", "unknown", "reserved"])
def test_other_arguments_under_the_key_are_refused_in_every_state(engine: Engine, state: str) -> None:
    end = {"done": "ok", "failed": ValueError(), "unknown": OutcomeUnknown("?"), "reserved": SystemExit()}[state]
    with contextlib.suppress(ValueError, OutcomeUnknown, SystemExit):
        queue_worker.once("k", Provider(end), 7)
    provider = Provider()
    with pytest.raises(KeyReuse, match="key_reuse: 'k' was used before with other arguments"):
        queue_worker.once("k", provider, 8, unknown="retry")
    assert provider.calls == []
    assert entry(engine).state == state


def test_a_value_that_cannot_be_kept_never_repeats_the_call(engine: Engine) -> None:
    provider = Provider(object())
    with pytest.raises(UsageError, match="what the function returned cannot be written as JSON"):
        queue_worker.once("k", provider)
    assert entry(engine)[:2] == ("done", None)
    assert queue_worker.once("k", provider) is None
    assert len(provider.calls) == 1


@pytest.mark.parametrize(
    ("key", "args", "options", "words"),
    [
        ("", (), {}, "key must have 1 to 500 characters"),
        ("x" * 501, (), {}, "key must have 1 to 500 characters"),
        ("k", (object(),), {}, "an argument cannot be written as JSON"),
        ("k", (), {"within": "soon"}, "once: within 'soon': write a duration"),
        ("k", (), {"unknown": "guess"}, "unknown must be 'raise' or 'retry', not 'guess'"),
    ],
)
def test_mistakes_call_nothing(engine: Engine, key: str, args: Any, options: Any, words: str) -> None:
    provider = Provider()
    with pytest.raises(UsageError, match=words):
        queue_worker.once(key, provider, *args, **options)
    assert provider.calls == []
    assert engine.value("select count(*) from queue_worker_data.once") == 0


def test_old_keys_are_pruned_and_open_ones_stay_for_a_person(engine: Engine) -> None:
    queue_worker.once("done", Provider())
    for key, end in (("failed", ValueError()), ("unknown", OutcomeUnknown("?"))):
        with pytest.raises(type(end)):
            queue_worker.once(key, Provider(end))
    assert engine.value("select queue_worker.prune_once(3600)") == 0
    engine.rows("update queue_worker_data.once set at = at - interval '2 hours'")
    queue_worker.once("new", Provider())
    assert engine.value("select queue_worker.prune_once(3600, 1)") == 1
    assert engine.value("select queue_worker.prune_once(3600)") == 1
    assert engine.rows("select key from queue_worker_data.once order by 1") == [("new",), ("unknown",)]


# ------------------------------------------------------------------------------------------------------- in handlers


def test_a_run_after_a_failure_does_not_repeat_the_call(engine: Engine, dsn: str) -> None:
    provider = Provider({"id": 1})
    values: list[Any] = []
    app = App(builtins=False)

    @app.processor("work", cycle=0.1, retry=[0])
    def charge(job: Job[dict[str, Any]]) -> None:
        values.append(job.once(f"order:{job.payload['order']}:charge", provider, job.payload["order"]))
        if job.attempt == 1:
            raise RuntimeError("after the call")

    charge.send({"order": 7})
    with running(dsn, app):
        wait_until(lambda: engine.places(1) == ["archive"])
    assert provider.calls == [("order:7:charge", 7)]
    assert values == [{"id": 1}] * 2


def test_a_message_stands_back_while_another_one_is_at_the_call(engine: Engine, dsn: str) -> None:
    inside, leave = threading.Event(), threading.Event()
    app = App(builtins=False)

    def slow(key: str, order: int) -> str:
        inside.set()
        assert leave.wait(30)
        return "ok"

    @app.processor("work", cycle=0.1)
    def charge(job: Job[dict[str, Any]]) -> None:
        job.once("order:7:charge", slow, 7)

    with running(dsn, app):
        charge.send({"order": 7})
        assert inside.wait(30)
        charge.send({"order": 7})
        wait_until(lambda: engine.rows("select 1 from queue_worker_data.failures where msg_id = 2"))
        leave.set()
        wait_until(lambda: engine.places(1) == ["archive"])
    assert 100 < engine.value("select extract(epoch from vt - now()) from pgmq.q_QUEUE where msg_id = 2") <= 121


def test_key_reuse_and_unknown_are_dead_letters_at_once(engine: Engine, dsn: str) -> None:
    app = App(builtins=False)

    @app.processor("work", cycle=0.1)
    def charge(job: Job[dict[str, Any]]) -> None:
        # Without arguments the payload is what must be the same.
        job.once("k", Provider(OutcomeUnknown("?") if job.payload["n"] == 1 else "ok"))

    with running(dsn, app):
        charge.send({"n": 1})
        wait_until(lambda: engine.places(1) == ["dead"])
        charge.send({"n": 2})
        wait_until(lambda: engine.places(2) == ["dead"])
        charge.send({"n": 1})
        wait_until(lambda: engine.places(3) == ["dead"])
    rows = engine.rows(
        "select reason, attempts, split_part(error, ':', 1) from queue_worker_data.dead_letters order by 1"
    )
    assert {tuple(row) for row in rows} == {
        ("rejected", 1, "?"), ("rejected", 1, "key_reuse"), ("rejected", 1, "unknown_outcome"),
    }  # fmt: skip


@pytest.mark.conformance(without="rest", hosted=True)
def test_it_is_refused_inside_the_jobs_transaction_and_works_after_one_was_left(engine: Engine, dsn: str) -> None:
    errors: list[str] = []
    app = App(builtins=False)

    @app.processor("work", cycle=0.1)
    def handle(job: Job[dict[str, Any]]) -> None:
        with contextlib.suppress(ZeroDivisionError), job.transaction():
            1 / 0  # noqa: B018
        job.once("before", Provider())
        with job.transaction():
            try:
                job.once("inside", Provider())
            except UsageError as error:
                errors.append(str(error))

    handle.send({})
    with running(dsn, app):
        wait_until(lambda: engine.places(1) == ["archive"])
    assert errors == ["once: call it before job.transaction(), the reservation must commit before the call"]
    assert engine.rows("select key from queue_worker_data.once") == [("before",)]


def test_nobody_outside_may_read_the_ledger(db: psycopg.Connection[Any]) -> None:
    assert db.execute(
        "select relrowsecurity from pg_class where oid = 'queue_worker_data.once'::regclass"
    ).fetchone() == (True,)
    granted = "select count(*) from pg_proc, aclexplode(proacl) a where proname ~ 'once' and a.grantee = 0"
    assert db.execute(granted).fetchone() == (0,)
