"""SQL functions over Supabase's REST interface: the same functions as over psycopg, through SQL `call`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from queue_worker.config_keys import notice, role_of
from queue_worker.errors import CallRefused, ConfigError, TransportUnavailable, TransportUnsupported
from queue_worker.schema_name import current, renamed, renamed_arguments, use
from queue_worker.transport import Listener, Rows
from queue_worker.transport.rest_client import RestClient
from queue_worker.transport.rest_errors import NEEDS_URL
from queue_worker.transport.rest_values import plain, rows_of
from queue_worker.transport.watch import Watch

_TURN = "queue_worker.settle_claim"

# These read, or are fenced by a receipt, or say the same again: a repeat does nothing twice. All others carry a key.
_REPEATABLE = frozenset(
    f"queue_worker.{name}"
    for name in (
        "about", "alert_delivered", "archived", "check_alerts", "close_breaker", "counters", "create_queue", "diagnose",
        "due", "due_schedules", "extend", "heartbeat", "history", "hold", "limits", "list_alerts", "list_audit",
        "list_dead", "list_functions", "list_payments", "list_producers", "list_progress", "list_queues",
        "list_schedules", "list_workers", "lost", "message", "messages", "overview", "pause", "payment", "release",
        "report_progress", "result", "resume", "run_report", "sandbox_find", "schedule", "schema_version", "security",
        "settle", "sign_off", "trip",
    )
)  # fmt: skip

_TRIES = 3

_UNTRANSACTED = (
    "job.transaction() needs a Postgres connection, and this worker reaches the database over REST: set DATABASE_URL,"
    " or put the statements into a SQL function and end with job.finish('schema.function', ...)"
)


class SupabaseTransport:
    """Calls over a client that it shares; one loop uses one transport, handlers of any number of threads another.

    `receipts`: for the engine, see `rest_values.rows_of`. `tries`: how often a call without an answer is sent in all.
    """

    def __init__(self, client: RestClient, *, receipts: bool = False, tries: int = _TRIES, owner: bool = False) -> None:
        self._client = client
        self._owner = owner
        self._receipts = receipts
        self._tries = tries
        self._unanswered: tuple[dict[str, Any], str] | None = None

    def call(self, function: str, params: Mapping[str, Any]) -> Rows:
        """See `Transport.call`."""
        arguments = plain(params)
        if function == _TURN:
            return self._turn(arguments)
        return self._ask(function, arguments, None if function in _REPEATABLE else str(uuid.uuid4()))

    def _ask(self, function: str, arguments: Mapping[str, Any], key: str | None) -> Rows:
        retrying = Retrying(
            retry=retry_if_exception_type(TransportUnavailable),
            stop=stop_after_attempt(self._tries),
            wait=wait_exponential_jitter(multiplier=0.2, max=1.0, jitter=0.2),
            reraise=True,
        )
        return retrying(self._once, function, arguments, key)

    def _once(self, function: str, arguments: Mapping[str, Any], key: str | None) -> Rows:
        answer = self._client.call(renamed(function), renamed_arguments(function, arguments), key)
        try:
            return rows_of(answer, receipts=self._receipts)
        except ValueError as error:
            raise TransportUnavailable(f"{error} ({self._client.host})") from None

    def _turn(self, arguments: dict[str, Any]) -> Rows:
        """Settle and claim. A claim whose answer was lost is asked for again, so that its messages need not wait."""
        earlier: list[tuple[Any, ...]] = []
        if self._unanswered is not None:
            before, key = self._unanswered
            try:
                again = self._once(_TURN, before, key)
            except CallRefused:
                # Say the queue was dropped: there is nothing more to be had from it.
                self._unanswered = None
                raise
            # Of what it settled nothing is needed: the loop settles it again, and a spent receipt says 'gone'.
            earlier = [row for row in again.rows if row[0] in ("job", "expired", "probe")]
            self._unanswered = None
            room = arguments["max_count"] - sum(row[0] == "job" for row in earlier)
            arguments = {**arguments, "max_count": max(0, room)}
        key = str(uuid.uuid4())
        try:
            rows = self._once(_TURN, arguments, key)
        except TransportUnavailable:
            if not earlier:
                if arguments["max_count"] > 0:
                    self._unanswered = arguments, key
                raise
            # What the earlier claim brought must be heard of now; what was to be settled is reported as not stored yet.
            rows = Rows(again.columns, _not_stored(arguments, again.columns))
        return Rows(rows.columns, [*earlier, *rows.rows])

    @property
    def stuck_for(self) -> float:
        """Always 0: every request has time limits of its own."""
        return 0.0

    def abort(self) -> None:
        """Nothing: every request has time limits of its own."""

    def close(self) -> None:
        """Close the connections if they are this transport's alone; the next call opens them again."""
        if self._owner:
            self._client.close()

    def settling(self, *_: Any, **__: Any) -> NoReturn:
        """See `transactions.TransactionPool.settling`; raises TransportUnsupported, REST has no transactions."""
        raise TransportUnsupported(_UNTRANSACTED)


def _not_stored(arguments: Mapping[str, Any], columns: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """Return rows that say of each settlement: no answer, send it again."""
    place = {name: index for index, name in enumerate(columns)}
    rows = []
    for msg_id in [*arguments["done_ids"], *arguments["other_ids"]]:
        row: list[Any] = [None] * len(columns)
        # 55P03: it waits, is sent again as it is, and nobody is charged.
        row[place["kind"]], row[place["msg_id"]], row[place["detail"]] = "error", msg_id, "55P03: no answer"
        rows.append(tuple(row))
    return rows


@dataclass(frozen=True, slots=True)
class SupabaseAddress:
    """A project's URL and key; `answer_seconds` is the longest wait for an answer."""

    url: str
    key: str = field(repr=False)
    schema: str | None
    answer_seconds: float
    environment: str

    def open(self) -> SupabaseDatabase:
        """See `Address`."""
        use(self.environment)
        return SupabaseDatabase(self.url, self.key, schema=self.schema, answer_seconds=self.answer_seconds)


class SupabaseDatabase:
    """What one process reaches over REST; implements `Database`."""

    name = "supabase"
    pooler = True

    def __init__(self, url: str, key: str, *, schema: str | None = None, answer_seconds: float = 10.0) -> None:
        self._address = SupabaseAddress(url, key, schema, answer_seconds, current())
        self._client = RestClient(url, key, schema=schema, answer_seconds=answer_seconds)
        self.pool = SupabaseTransport(self._client)
        self.description = f"supabase (REST), key for {role_of(key) or 'a role that it does not tell'}"
        self._about = {"connection": self.description}
        if wide := notice(key):
            self._about["key"] = wide

    def about(self) -> dict[str, str]:
        """See `Database`."""
        return dict(self._about)

    def exposed_schemas(self) -> list[str] | None:
        """See `Database`; None too where an API does not tell."""
        return self._client.exposed_schemas()

    def transport(self, *, receipts: bool = False, statement_seconds: float | None = None) -> SupabaseTransport:
        """Return a transport; `receipts` for the engine's calls, whose loops repeat by themselves.

        `statement_seconds` is not used: the roles of the API have a time limit of their own.
        """
        del statement_seconds
        return SupabaseTransport(self._client, receipts=receipts, tries=1 if receipts else _TRIES)

    def producers(self) -> SupabaseTransport:
        """Return the transport of producers, who may hold receipts; closing it closes the connections."""
        return SupabaseTransport(self._client, receipts=True, owner=True)

    def listener(self, queues: Sequence[str], cycle_seconds: float) -> Listener:
        """Return what asks for all queues at once: NOTIFY does not travel over REST."""
        return Watch(self.transport(receipts=True), queues, cycle_seconds)

    def address(self) -> SupabaseAddress:
        """See `Database`."""
        return self._address

    def cut_stuck(self, seconds: float, threads: Set[int] = frozenset()) -> int:
        """Return 0: every request has time limits of its own."""
        return 0

    @contextmanager
    def watched(self, seconds: float) -> Iterator[None]:
        """Do nothing more than run the block, see `cut_stuck`."""
        yield

    def conninfo(self) -> str:
        """Raise ConfigError: there is no Postgres URL."""
        raise ConfigError(NEEDS_URL)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
