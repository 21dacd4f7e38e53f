"""A real SMTP server (aiosmtpd) that does what a test says, and keeps what it received.

    with SmtpServer() as server:
        server.answer("RCPT", "451 4.7.1 greylisted", to="bob@example.com")   # once, then it accepts
        server.answer("DATA", DROP)                                            # takes the mail, closes without a reply
        ...
        assert server.count("bob@example.com") == 1

It listens on 127.0.0.1, on a free port. `tls`: context for STARTTLS, or with `implicit` for TLS from the first byte.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import defaultdict, deque
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import trustme
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

DROP = "drop"
"""Close the connection instead of a reply."""

STALL = "stall"
"""Never reply; the server's end releases the connection."""


@dataclass(frozen=True)
class Received:
    """One mail as it came: the envelope, and the bytes between DATA and the final dot."""

    sender: str
    recipients: tuple[str, ...]
    data: bytes

    @property
    def message(self) -> EmailMessage:
        """The parsed mail."""
        parsed = message_from_bytes(self.data, policy=policy.default)
        assert isinstance(parsed, EmailMessage)
        return parsed


class _Protocol(SMTP):
    def __init__(self, server: SmtpServer, **options: Any) -> None:
        super().__init__(server, **options)
        self.owner = server
        self.number = -1

    async def smtp_STARTTLS(self, arg: str) -> None:  # noqa: N802
        reply = await self.owner.scripted(self, "STARTTLS")
        await (self.push(reply) if reply else super().smtp_STARTTLS(arg))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.number < 0:  # STARTTLS calls this a second time
            self.number = len(self.owner.connections)
            self.owner.connections.append(bytearray())
            self.owner.open_transports.add(transport)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.owner.closed += 1
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        self.owner.connections[self.number] += data
        super().data_received(data)


class SmtpServer:
    """See the module's docstring. `auth`: (user, password) that the server asks for.

    connections: the clear bytes that each client sent (after TLS is set up: those inside it). received: the mails that
    got to the end of DATA with a positive answer, or with DROP.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        implicit: bool = False,
        auth: tuple[str, str] | None = None,
        require_starttls: bool = False,
        utf8: bool = False,
        max_bytes: int = 33_554_432,
    ) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.received: list[Received] = []
        self.connections: list[bytearray] = []
        self.closed = 0
        self.open_transports: set[asyncio.BaseTransport] = set()
        self._auth = auth
        self._implicit_context = tls if implicit else None
        self._options: dict[str, Any] = {
            "tls_context": None if implicit else tls,
            "require_starttls": require_starttls,
            "auth_require_tls": tls is not None and not implicit,
            "authenticator": self._authenticate,
            "enable_SMTPUTF8": utf8,
            "data_size_limit": max_bytes,
            "hostname": "mail.example.test",
        }
        self._answers: dict[tuple[str, str], deque[str]] = defaultdict(deque)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="smtp-server", daemon=True)
        self._listener: asyncio.Server | None = None

    def answer(self, command: str, *replies: str, to: str = "") -> None:
        """Give these replies (or DROP, STALL) to the next EHLO, STARTTLS, MAIL, RCPT, DATA or RSET, one each.

        `to`: for RCPT, the recipient it is about. An answer to DATA comes after the final dot.
        """
        self._answers[command, to].extend(replies)

    def count(self, recipient: str) -> int:
        """How many mails came for a recipient."""
        return sum(one.recipients.count(recipient) for one in self.received)

    def wire(self) -> bytes:
        """All that clients sent."""
        return b"".join(bytes(one) for one in self.connections)

    def cut(self) -> None:
        """Close every open connection, as a server does with idle ones; new ones are welcome."""
        self._call(self._cut())

    async def _cut(self) -> None:
        for transport in list(self.open_transports):
            transport.abort()  # type: ignore[attr-defined]
        self.open_transports.clear()

    def __enter__(self) -> SmtpServer:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self) -> None:
        self._loop.set_exception_handler(lambda loop, context: None)  # failed handshakes are what some tests want
        self._listener = await self._loop.create_server(
            lambda: _Protocol(self, loop=self._loop, **self._options), self.host, 0, ssl=self._implicit_context
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        assert self._listener is not None
        self._listener.close()
        await self._cut()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- what aiosmtpd calls, by names of its own

    def _authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        good = (
            isinstance(data, LoginPassword)
            and self._auth is not None
            and (data.login.decode(), data.password.decode()) == self._auth
        )
        return AuthResult(success=good, handled=False)

    async def scripted(self, server: SMTP, command: str, to: str = "") -> str | None:
        queue = self._answers.get((command, to))
        reply = queue.popleft() if queue else None
        if reply == STALL:
            await asyncio.Event().wait()
        if reply == DROP:
            assert server.transport is not None
            server.transport.abort()  # type: ignore[attr-defined]
            await asyncio.Event().wait()
        return reply

    async def handle_MAIL(self, server: SMTP, session: Any, envelope: Any, address: str, options: list[str]) -> str:  # noqa: N802
        reply = await self.scripted(server, "MAIL")
        if reply is None and self._auth is not None and not session.authenticated:
            reply = "530 5.7.0 Authentication required"
        if reply is None:
            envelope.mail_from = address
            envelope.mail_options.extend(options)
        return reply or "250 2.1.0 OK"

    async def handle_RCPT(self, server: SMTP, session: Any, envelope: Any, address: str, options: list[str]) -> str:  # noqa: N802
        reply = await self.scripted(server, "RCPT", address)
        if reply is None or reply.startswith("2"):
            envelope.rcpt_tos.append(address)
        return reply or "250 2.1.5 OK"

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:  # noqa: N802
        queue = self._answers["DATA", ""]
        if not queue or queue[0] == DROP or queue[0].startswith("2"):
            self.received.append(Received(envelope.mail_from, tuple(envelope.rcpt_tos), bytes(envelope.content)))
        return await self.scripted(server, "DATA") or f"250 2.0.0 queued as {len(self.received)}"

    async def handle_RSET(self, server: SMTP, session: Any, envelope: Any) -> str:  # noqa: N802
        return await self.scripted(server, "RSET") or "250 OK"

    async def handle_EHLO(self, server: SMTP, session: Any, envelope: Any, name: str, replies: list[str]) -> list[str]:  # noqa: N802
        session.host_name = name
        reply = await self.scripted(server, "EHLO")
        replies = [one for one in replies if self._auth is not None or not one.startswith("250-AUTH")]
        return [reply] if reply else replies


def server_tls(authority: trustme.CA, *names: str, **options: Any) -> ssl.SSLContext:
    """A server's TLS context with a certificate for `names`; `options` are those of trustme's issue_cert."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, **options).configure_cert(context)
    return context
