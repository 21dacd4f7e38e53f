"""The SMTP client: sends mails over connections that are kept open and shared by all threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from smtplib import SMTP
from typing import NamedTuple

from queue_worker.processors.email_compose import Letter, Mail, compose
from queue_worker.processors.email_config import EmailConfig
from queue_worker.processors.email_connect import SmtpFailure, hang_up, open_smtp, tls_context
from queue_worker.processors.email_ledger import Reservation, Result
from queue_worker.processors.email_transaction import Transaction, transact

MAX_IDLE = 60.0
"""Age in seconds after which an idle connection is not used again; servers drop them from about then on."""


class _Idle(NamedTuple):
    smtp: SMTP
    since: float


class SmtpClient:
    """Safe for several threads: each mail has a connection for itself, the last one used first.

    Raises ConfigError for a bad `ca_file`.
    """

    key_lifetime = None  # a Message-ID helps people to see a repeat, and keeps none away

    def __init__(self, config: EmailConfig) -> None:
        self._config = config
        self._context = tls_context(config)
        self._lock = threading.Lock()
        self._idle: list[_Idle] = []
        self._closed = False

    def deliver(self, mail: Mail, due: Sequence[str], reservation: Reservation) -> dict[str, Result]:
        """Send one mail to the recipients in `due`; see `email_transport.MailTransport`."""
        letter, recipients, deadline = compose(mail), due, reservation.deadline
        smtp = self._take()
        if smtp is not None:
            transaction = self._transact(smtp, letter, recipients, deadline)
            if not transaction.stale:
                return transaction.results
        # Nothing has been said on the stale connection yet, so that starting over cannot send twice.
        try:
            smtp = open_smtp(self._config, self._context)
        except SmtpFailure as failure:
            return dict.fromkeys(recipients, Result("deferred", str(failure), failure.code))
        return self._transact(smtp, letter, recipients, deadline).results

    def close(self) -> None:
        """Close all connections; those in use are closed when their mail is done."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for one in idle:
            hang_up(one.smtp)

    def _transact(self, smtp: SMTP, letter: Letter, recipients: Sequence[str], deadline: float) -> Transaction:
        usable = False
        try:
            final_seconds = max(self._config.final_seconds, self._config.timeout_seconds)
            transaction = transact(smtp, letter, recipients, final_seconds, deadline)
            usable = transaction.usable
            return transaction
        finally:
            if usable:
                self._put(smtp)
            else:
                hang_up(smtp, polite=False)

    def _take(self) -> SMTP | None:
        now = time.monotonic()
        with self._lock:
            fresh = [one for one in self._idle if now - one.since < MAX_IDLE]
            old = [one for one in self._idle if now - one.since >= MAX_IDLE]
            taken = fresh.pop() if fresh else None
            self._idle = fresh
        for one in old:
            hang_up(one.smtp, polite=False)
        return taken.smtp if taken else None

    def _put(self, smtp: SMTP) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(_Idle(smtp, time.monotonic()))
                return
        hang_up(smtp)
