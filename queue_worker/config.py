"""The settings of a process: read once, checked as a whole, never changed.

Command line > environment > `.env` (or `--env-file`) > decorator > default. In one source, what is set for one queue
(`QUEUE_WORKER_QUEUES__EMAIL__BATCH_SIZE`) beats what is set for all (`QUEUE_WORKER_BATCH_SIZE`). This module and
its parts `config_*` are the only readers of the environment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pydantic import PrivateAttr, SecretStr, ValidationError

from queue_worker import config_keys
from queue_worker.config_alerts import AlertFields
from queue_worker.config_errors import config_error
from queue_worker.config_options import (
    DECORATOR_OPTIONS,
    OPTIONS,
    PREFIX,
    PROVIDER_KEY_SECONDS,
    QUEUE_NAME,
    QUEUE_PREFIX,
    Layer,
    QueueOptions,
    check_option,
    check_queue_name,
    fold,
    resolve,
    retry_horizon,
)
from queue_worker.config_sources import DEFAULT, read_layers, variables
from queue_worker.config_text import passwords, postgres_url, show
from queue_worker.errors import ConfigError

__all__ = [
    "DECORATOR_OPTIONS",
    "QUEUE_NAME",
    "QueueOptions",
    "Setting",
    "Settings",
    "check_option",
    "check_queue_name",
    "load_settings",
]

SHORTEST_TOKEN = 16

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Setting(NamedTuple):
    """One line of `queue-worker config`: the variable, its value with secrets masked, and where it came from."""

    name: str
    value: str
    source: str


class Settings(AlertFields):
    """The settings of a process; made by `load_settings` alone."""

    _layers: tuple[Layer, ...] = PrivateAttr(default=())
    _sources: Mapping[str, str] = PrivateAttr(default_factory=dict)
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd but no error, one line each, for the caller to log: unknown variables, an open `.env`."""
        return self._warnings

    @property
    def dsn(self) -> str | None:
        """The Postgres URL from DATABASE_URL or the DB_* variables, with its password; None without either."""
        if self.database_url:
            return self.database_url.get_secret_value()
        if not self.db_host:
            return None
        password = self.db_password.get_secret_value() if self.db_password else ""
        return postgres_url(self.db_host, self.db_port, self.db_user, password, self.db_name)

    @property
    def transport(self) -> Literal["postgres", "supabase", "embedded"] | None:
        """How the database is reached: the embedded one, a Postgres URL, else Supabase's REST; None: not at all."""
        if self.embedded:
            return "embedded"
        if self.dsn:
            return "postgres"
        return "supabase" if self.supabase_url else None

    def require_database(self) -> None:
        """Raise ConfigError if nothing says where the database is."""
        if self.transport is None:
            half = next((name for name in ("DB_USER", "DB_PASSWORD", "DB_NAME") if name.lower() in self._sources), None)
            if half:
                raise ConfigError(f"{half} is set without DB_HOST: set DB_HOST, or DATABASE_URL instead")
            if self.supabase_service_role_key:
                raise ConfigError("SUPABASE_SERVICE_ROLE_KEY is set without SUPABASE_URL")
            raise ConfigError(
                "no database is set: set DATABASE_URL (or DB_HOST ...), or SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY,"
                " or QUEUE_WORKER_EMBEDDED=1 for the embedded Postgres"
            )

    def options_for(self, queue: str, decorator: Mapping[str, Any] = _NOTHING) -> QueueOptions:
        """Return the options of `queue`, where `decorator` holds what `@app.processor` set.

        Raises ConfigError for a value that is wrong or contradicts another one.
        """
        options = resolve(queue, self._layers, decorator)
        providers = {"payments": (self.payments_provider, "charge"), "email": (self.email_provider, "send a mail")}
        provider, act = providers.get(queue, ("", ""))
        lifetime = PROVIDER_KEY_SECONDS.get(provider, math.inf)
        horizon = retry_horizon(options)
        if horizon >= lifetime:
            raise ConfigError(
                f"queue {queue!r}: retries go on for {horizon:.0f} s, but {provider} forgets an"
                f" idempotency key after {lifetime:.0f} s and could {act} twice; lower MAX_ATTEMPTS or the delays"
            )
        return options

    def is_set(self, field: str) -> bool:
        """Return whether a source sets `field`, even if to its default."""
        return field in self._sources

    def check_queues(self, queues: Iterable[str]) -> list[str]:
        """Check the per-queue variables against the `queues` that exist here; returns warnings, one line each.

        Raises ConfigError where one variable would mean two queues, such as `a-b` and `a_b`.
        """
        by_fold: dict[str, str] = {}
        configured = {queue for layer in self._layers for queue in layer.queues}
        for queue in queues:
            other = by_fold.setdefault(fold(queue), queue)
            if other != queue and fold(queue) in configured:
                raise ConfigError(
                    f"{QUEUE_PREFIX}{fold(queue).upper()}__... means both {other!r} and {queue!r}: set the options of"
                    " these queues in the decorator"
                )
        missing = sorted(configured - set(by_fold))
        return [f"{QUEUE_PREFIX}{queue.upper()}__...: no such queue runs here" for queue in missing]

    def secret_values(self) -> tuple[str, ...]:
        """Return every secret in clear, for `log.register_secret`; never show them."""
        values = [value.get_secret_value() for _, value in self if isinstance(value, SecretStr)]
        values += passwords(self.dsn or "")
        return tuple(dict.fromkeys(value for value in values if value))

    def explain(self) -> list[Setting]:
        """Return every setting with its effective value and source, secrets masked, then those of single queues."""
        lines = [
            Setting(names[0], show(getattr(self, field)), self._sources.get(field, DEFAULT))
            for field, names in variables(type(self)).items()
        ]
        # "" is no queue, so that only the general options apply.
        general = resolve("", [Layer(layer.source, options=layer.options) for layer in self._layers])
        for option in OPTIONS:
            source = next((layer.source for layer in self._layers if option in layer.options), DEFAULT)
            lines.append(Setting(PREFIX + option.upper(), show(getattr(general, option)), source))
        seen: set[str] = set()
        for layer in self._layers:
            for queue, options in sorted(layer.queues.items()):
                for option in options:
                    name = f"{QUEUE_PREFIX}{queue.upper()}__{option.upper()}"
                    if name not in seen:
                        seen.add(name)
                        lines.append(Setting(name, show(getattr(self.options_for(queue), option)), layer.source))
        return lines


def load_settings(overrides: Mapping[str, Any] | None = None, env_file: Path | None = None) -> Settings:
    """Read and check all settings.

    `overrides` are those of the command line by field name or queue option; None means not given, and an empty
    string takes away what other sources say. `env_file` replaces `.env` of the working directory and must exist.
    Raises ConfigError with one line that names the variable.
    """
    layers, warnings = read_layers(Settings, overrides or {}, env_file)
    names = variables(Settings)
    values: dict[str, Any] = {}
    origin: dict[str, Layer] = {}
    for layer in layers:
        for field, value in layer.values.items():
            if field not in origin:
                values[field], origin[field] = value, layer
    given = {field: value for field, value in values.items() if value != ""}
    try:
        settings = Settings.model_validate(_derive(given))
    except ValidationError as error:
        label = {field: layer.name(names[field][0]) for field, layer in origin.items()}
        raise config_error(error, Settings, lambda field: label.get(field, field)) from None
    settings._layers = layers
    settings._sources = {field: origin[field].source for field in given}
    settings._warnings = (*warnings, *_odd(settings, given))
    _check(settings)
    return settings


def _derive(given: Mapping[str, Any]) -> dict[str, Any]:
    """Add the defaults that follow from other settings."""
    values = dict(given)
    state = Path(values.get("state_dir", Settings.model_fields["state_dir"].default))
    values.setdefault("outbox_dir", state / "outbox")
    values.setdefault("reports_dir", state / "reports")
    if str(values.get("smtp_port", "")).strip() == "465":
        values.setdefault("smtp_secure", True)
    elif str(values.get("smtp_secure", "")).strip().lower() in ("true", "1", "yes", "on", "y", "t"):
        values.setdefault("smtp_port", 465)
    return values


def _odd(settings: Settings, given: Mapping[str, Any]) -> Iterable[str]:
    if settings.database_url and settings.db_host:
        yield "DB_HOST is ignored because DATABASE_URL is set"
    if settings.smtp_port == 465 and not settings.smtp_secure:
        yield "SMTP_PORT=465 expects TLS from the first byte, but SMTP_SECURE=false"
    if settings.smtp_host and settings.email_provider != "smtp":
        yield f"SMTP_HOST is ignored because QUEUE_WORKER_EMAIL_PROVIDER={settings.email_provider}"
    if settings.smtp_redirect_to:
        yield f"SMTP_REDIRECT_TO is set: every mail goes to {settings.smtp_redirect_to} and to NOBODY else"
    if settings.smtp_allow_plain and settings.smtp_host:
        yield "QUEUE_WORKER_SMTP_ALLOW_PLAIN is on: mails and the SMTP password may travel in clear"
    key = settings.supabase_service_role_key
    if settings.transport == "supabase" and key and (wide := config_keys.notice(key.get_secret_value())):
        yield wide


def _check(settings: Settings) -> None:
    """Refuse settings that contradict each other; raises ConfigError."""
    clocks = (
        f"QUEUE_WORKER_GRACE_SECONDS ({settings.grace_seconds:g}) must be less than QUEUE_WORKER_STOP_TIMEOUT"
        f" ({settings.stop_timeout:g}): the process would be killed before its grace ends"
    )
    key = settings.supabase_service_role_key
    refused_key = config_keys.refusal(key.get_secret_value()) if key else None
    rules = [
        (
            settings.embedded and settings.dsn,
            "QUEUE_WORKER_EMBEDDED and DATABASE_URL (or DB_HOST) are both set: take one away",
        ),
        (
            settings.supabase_url
            and not settings.supabase_service_role_key
            and (settings.transport == "supabase" or settings.reports_bucket),
            "SUPABASE_URL is set without SUPABASE_SERVICE_ROLE_KEY",
        ),
        (settings.supabase_url and refused_key, refused_key or ""),
        (
            settings.reports_bucket and not settings.supabase_url,
            "QUEUE_WORKER_REPORTS_BUCKET needs SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY",
        ),
        (settings.grace_seconds >= settings.stop_timeout, clocks),
        (
            settings.with_api and settings.processes > 1,
            "QUEUE_WORKER_WITH_API serves from one process: beside several run `queue-worker api`",
        ),
        (settings.smtp_user and not settings.smtp_password, "SMTP_USER is set without SMTP_PASSWORD"),
        (settings.smtp_host and not settings.smtp_from_email, "SMTP_HOST is set without SMTP_FROM_EMAIL"),
        (
            settings.email_provider == "resend" and not settings.resend_api_key,
            "QUEUE_WORKER_EMAIL_PROVIDER=resend needs QUEUE_WORKER_RESEND_API_KEY (or RESEND_API_KEY)",
        ),
        (
            settings.email_provider == "resend" and not settings.smtp_from_email,
            "QUEUE_WORKER_EMAIL_PROVIDER=resend is set without SMTP_FROM_EMAIL",
        ),
        (
            settings.payments_provider == "stripe" and not settings.stripe_api_key,
            "QUEUE_WORKER_PAYMENTS_PROVIDER=stripe needs QUEUE_WORKER_STRIPE_API_KEY (or STRIPE_API_KEY)",
        ),
    ]
    rules += [
        (
            bool(token and len(token.get_secret_value()) < SHORTEST_TOKEN),
            f"{name} must have at least {SHORTEST_TOKEN} characters: `openssl rand -hex 24` makes one",
        )
        for name, token in (
            ("QUEUE_WORKER_API_TOKEN", settings.api_token),
            ("QUEUE_WORKER_API_READ_TOKEN", settings.api_read_token),
        )
    ]
    for broken, line in rules:
        if broken:
            raise ConfigError(line)
    configured = {queue for layer in settings._layers for queue in layer.queues}
    for queue in sorted({"email", "payments", *configured}):
        settings.options_for(queue)
    limit = settings.options_for("email").timeout_seconds
    sends = settings.smtp_host or settings.email_provider != "smtp"
    if sends and settings.smtp_timeout_seconds >= limit:
        raise ConfigError(
            f"QUEUE_WORKER_SMTP_TIMEOUT_SECONDS ({settings.smtp_timeout_seconds:g}) must be less than the time limit of"
            f" queue 'email' ({limit:g}): a silent mail server would outlast every run"
        )
