"""What the e-mail processor asks of a way to send mail; one more way is one more class like these.

`email_smtp.SmtpClient` speaks SMTP, `email_resend.ResendClient` an HTTP API, `Outbox` writes files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from queue_worker.processors.email_compose import Mail, compose
from queue_worker.processors.email_config import EmailConfig
from queue_worker.processors.email_ledger import Reservation, Result
from queue_worker.processors.email_outbox import write_eml


class MailTransport(Protocol):
    """A way to send mail; used by several threads at once.

    `key_lifetime`: for how many seconds after its first try the same mail can be sent again without reaching anybody
    twice, because the other side remembers its key. None: it remembers nothing, and the user's policy decides.
    """

    @property
    def key_lifetime(self) -> float | None: ...

    def deliver(self, mail: Mail, due: Sequence[str], reservation: Reservation) -> dict[str, Result]:
        """Send one mail to the recipients in `due` and return the result of each; failures are results too.

        Must end before `reservation.deadline` (time.monotonic) and must not retry by itself.
        """

    def close(self) -> None:
        """Give back what is held."""


class Outbox:
    """Writes mails as .eml files, for as long as there is no mail server."""

    key_lifetime = math.inf  # the same file again harms nobody

    def __init__(self, config: EmailConfig) -> None:
        self._folder = config.outbox_dir

    def deliver(self, mail: Mail, due: Sequence[str], reservation: Reservation) -> dict[str, Result]:
        """Write one file for all; see MailTransport. Raises OSError."""
        path = write_eml(self._folder, compose(mail).data, mail.key, reservation.first_at)
        return dict.fromkeys(due, Result("sent", f"written to {path.name}"))

    def close(self) -> None:
        """Nothing is held."""
