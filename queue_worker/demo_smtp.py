"""A real SMTP server on this machine that keeps what it receives: the other end of the demo's mails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from queue_worker.errors import ConfigError


class Received(NamedTuple):
    """One mail as it came: the recipients of the envelope, the mail, and the file that it was written to."""

    recipients: tuple[str, ...]
    message: EmailMessage
    file: Path

    @property
    def attachments(self) -> list[tuple[str, bytes]]:
        """Name and content of each attached file."""
        return [
            (part.get_filename() or "", bytes(part.get_payload(decode=True) or b""))
            for part in self.message.iter_attachments()
        ]


class CaptureServer:
    """Listens on 127.0.0.1, on a free `port`, while the block runs; writes each mail to `folder`.

    Plain SMTP, which the worker speaks to this machine only. Raises ConfigError where aiosmtpd is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from aiosmtpd.smtp import SMTP
        except ModuleNotFoundError:
            raise ConfigError("the demo needs aiosmtpd: pip install 'queue-worker[embedded]'") from None
        self.port = 0
        self._protocol = SMTP
        self._folder = folder
        self._received: list[Received] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="demo-smtp", daemon=True)
        self._listener: asyncio.Server | None = None

    @property
    def received(self) -> tuple[Received, ...]:
        """The mails so far, in the order in which they came."""
        return tuple(self._received)

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self) -> None:
        self._listener = await self._loop.create_server(
            lambda: self._protocol(self, loop=self._loop, hostname="localhost", enable_SMTPUTF8=True), "127.0.0.1", 0
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        """Keep the mail; called by aiosmtpd."""
        data = bytes(envelope.original_content)
        file = self._folder / f"{len(self._received) + 1}.eml"
        file.write_bytes(data)
        message = message_from_bytes(data, policy=policy.default)
        self._received.append(Received(tuple(envelope.rcpt_tos), message, file))
        return f"250 2.0.0 kept as {file.name}"
