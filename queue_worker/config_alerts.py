"""The settings of alerts: what is wrong enough to tell people, and how they are told."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo, field_validator

from queue_worker import safe_http
from queue_worker.config_fields import Fields, Names
from queue_worker.config_units import parse_span

Span = Annotated[float, BeforeValidator(parse_span)]


class AlertFields(Fields):
    """The fields of alerts; see `config_fields.Fields`."""

    alert_check_seconds: float = Field(
        10.0, ge=0, le=3600, description="Look for alerts every so many seconds (not with burst); 0: no alerts at all"
    )
    alert_backlog: int = Field(100, ge=0, le=1_000_000, description="Alert when more messages of a queue wait; 0: off")
    alert_oldest_seconds: Span = Field(
        900.0, ge=0, description="Alert when a message waits for longer, seconds or as 15m; 0: off"
    )
    alert_dead: int = Field(1, ge=0, le=1000, description="Alert when a queue has so many dead letters; 0: off")
    alert_error_rate: float = Field(
        50.0, ge=0, le=100, description="Alert when more percent of a queue's runs in ten minutes failed; 0: off"
    )
    alert_error_runs: int = Field(20, ge=1, description="Runs in ten minutes below which the error rate says nothing")
    alert_stalled_seconds: Span = Field(
        120.0, ge=0, description="Alert when a queue has had something due for so long and nothing runs; 0: off"
    )
    alert_worker_seconds: Span = Field(
        45.0, ge=0, description="Alert when a worker is silent for so long and did not sign off; 0: off"
    )
    alert_schedule_seconds: Span = Field(120.0, ge=0, description="Alert when a schedule is late by so much; 0: off")
    alert_hold_seconds: Span = Field(30.0, ge=0, description="An alert clears when its cause has been gone for so long")
    alert_webhook_allow_private: bool = Field(
        False, description="Let the webhook be a private address or this machine, also by http://"
    )
    alert_webhook: SecretStr | None = Field(
        None, description="Post alerts as JSON to this https:// URL, for example an incoming webhook of Slack"
    )
    alert_email_to: Names = Field((), description="Mail alerts to these addresses, as mail leaves otherwise")

    @property
    def alert_rules(self) -> dict[str, float]:
        """The thresholds as SQL `check_alerts` takes them; 0: the rule is off."""
        return {
            "backlog": self.alert_backlog,
            "oldest": self.alert_oldest_seconds,
            "dead": self.alert_dead,
            "error_rate": self.alert_error_rate,
            "error_runs": self.alert_error_runs,
            "stalled": self.alert_stalled_seconds,
            "worker": self.alert_worker_seconds,
            "schedule": self.alert_schedule_seconds,
            "hold": self.alert_hold_seconds,
        }

    @field_validator("alert_webhook")
    @classmethod
    def _webhook(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is None:
            return None
        url = value.get_secret_value().strip()
        try:
            safe_http.parse(url, allow_private=bool(info.data.get("alert_webhook_allow_private")))
        except safe_http.Refused as error:
            raise ValueError(f"cannot be called: {error}") from None
        return SecretStr(url)

    @field_validator("alert_email_to")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            if not re.fullmatch(r"[^\s@<>,;:\"()\x00-\x1f]+@[^\s@<>,;:\"()\x00-\x1f]+", address):
                raise ValueError("must be addresses such as ops@example.com,oncall@example.com")
        return value
