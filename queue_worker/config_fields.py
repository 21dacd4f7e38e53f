"""Every setting that is not one of a queue: its variable, type, default and one line of description."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from queue_worker import schema_name
from queue_worker.config_options import PREFIX, check_queue_name
from queue_worker.config_text import check_postgres_url
from queue_worker.config_units import parse_size, parse_span
from queue_worker.errors import ConfigError

_SQL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}\.[A-Za-z_][A-Za-z0-9_$]{0,62}\Z")
_URL = re.compile(r"https?://[^/\s?#]+[^\s]*\Z")


def _bare(variable: str, default: Any, description: str, **rules: Any) -> Any:
    """A setting whose variable has no prefix, because users have it under this name already."""
    return Field(default, validation_alias=variable, description=description, **rules)


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _upper(value: Any) -> Any:
    return value.strip().upper() if isinstance(value, str) else value


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _sql_name(value: str) -> str:
    if value and not _SQL_NAME.match(value):
        raise ValueError("must be a function as schema.function, without arguments")
    return value


def _reports(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    reports: dict[str, str] = {}
    for part in _split(value):
        name, _, function = part.partition("=")
        if not re.fullmatch(r"[a-z0-9_-]{1,64}", name.strip()) or not _SQL_NAME.match(function.strip()):
            raise ValueError("must be a list such as sales=public.sales_report,stock=public.stock_report")
        reports[name.strip()] = function.strip()
    return reports


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]


class Fields(BaseSettings):
    """The fields of `config.Settings`; `QUEUE_WORKER_` + the name, unless an alias is given."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    database_url: SecretStr | None = _bare(
        "DATABASE_URL", None, "Postgres URL: direct, session pooler or transaction pooler"
    )
    db_host: str | None = _bare("DB_HOST", None, "Instead of DATABASE_URL: host name, or the folder of a Unix socket")
    db_port: int = _bare("DB_PORT", 5432, "Port", ge=1, le=65535)
    db_user: str = _bare("DB_USER", "postgres", "User")
    db_password: SecretStr | None = _bare("DB_PASSWORD", None, "Password, as it is: no percent signs needed")
    db_name: str = _bare("DB_NAME", "postgres", "Database")
    supabase_url: str | None = _bare(
        "SUPABASE_URL", None, "The project's URL: for the queues where no Postgres URL is set, and for Storage"
    )
    supabase_service_role_key: SecretStr | None = _bare(
        "SUPABASE_SERVICE_ROLE_KEY", None, "Key for SUPABASE_URL: a JWT or sb_secret_..."
    )
    db_schema: str = _bare(
        "QUEUE_WORKER_SCHEMA",
        schema_name.USUAL,
        "Schema of ours, another one for a second environment in the same database",
    )
    embedded: bool = Field(False, description="Use the embedded Postgres under the state folder")
    pooler: Literal["auto", "yes", "no"] = Field(
        "auto", description="Whether DATABASE_URL is a transaction pooler: auto, yes, no"
    )
    notify: bool = Field(True, description="Wake up by NOTIFY where the connection allows it; false: poll only")
    transaction_pool_size: int = Field(4, ge=1, le=100, description="Connections for job.transaction(), at most")
    call_timeout_seconds: float = Field(
        15.0, ge=1, le=600, description="After so many seconds without an answer a connection is cut"
    )

    app: str | None = Field(None, description="The user's app as module:name, for example mypkg.jobs:app")
    only: Names = Field((), description="Run these queues only, for example email,reports (empty: all)")
    burst: bool = Field(False, description="Stop when the queues are empty")
    scheduler: bool = Field(True, description="Fire schedules in this process too (not with burst)")
    migrate: bool = Field(False, description="Apply missing migrations at the start")
    grace_seconds: float = Field(
        25.0, ge=0, le=3600, description="How long running handlers may finish after the first stop signal, seconds"
    )
    stop_timeout: float = Field(
        30.0, gt=0, le=7200, description="When the process manager kills, seconds after its signal; above the grace"
    )
    processes: int = Field(1, ge=1, le=256, description="Worker processes, under one small parent when more than one")
    max_jobs: int | None = Field(None, ge=1, description="Start the process anew after so many jobs (empty: never)")
    max_memory: Annotated[int | None, BeforeValidator(parse_size)] = Field(
        None, ge=1, description="Start the process anew when it holds more memory, for example 512MB (empty: never)"
    )
    max_age: Annotated[float | None, BeforeValidator(parse_span)] = Field(
        None, ge=1, description="Start the process anew after so much time, seconds or as 12h (empty: never)"
    )
    reload: bool = Field(False, description="For development: start anew whenever a file of the app changes")
    state_dir: Path = Field(Path(".queue-worker"), description="Folder for run files and the embedded Postgres")

    port: int = _bare("PORT", 3001, "Port of the HTTP API; 0: any free one", ge=0, le=65535)
    api_host: str = Field("127.0.0.1", description="Address of the HTTP API; another than loopback needs a token")
    api_token: SecretStr | None = Field(
        None, description="Token of the HTTP API that may do everything; empty: loopback only, without a token"
    )
    api_read_token: SecretStr | None = Field(None, description="Token of the HTTP API that may only look")
    otel: bool = Field(
        False, description="Send traces by OpenTelemetry; OTEL_EXPORTER_OTLP_ENDPOINT and the like say where to"
    )
    with_api: bool = Field(False, description="Serve the HTTP API and the dashboard beside the worker")

    log_level: Annotated[Literal["TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)] = (
        Field("INFO", description="TRACE, DEBUG, INFO, WARNING, ERROR or CRITICAL")
    )
    log_format: Annotated[Literal["human", "json", "auto"], BeforeValidator(_lower)] = Field(
        "human", description="human, json, or auto: human on a terminal, json otherwise"
    )

    email_provider: Literal["smtp", "resend"] = Field(
        "smtp", description="How mail leaves: smtp, or resend (by its HTTP API)"
    )
    resend_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("QUEUE_WORKER_RESEND_API_KEY", "RESEND_API_KEY"),
        description="Resend's API key; RESEND_API_KEY works too",
    )
    resend_api_base: str = Field("https://api.resend.com", description="Another address of Resend's API, for tests")
    smtp_host: str | None = _bare("SMTP_HOST", None, "Mail server; empty: mails become .eml files in the outbox folder")
    smtp_port: int = _bare("SMTP_PORT", 587, "Port; 465 where SMTP_SECURE=true", ge=1, le=65535)
    smtp_secure: bool = _bare("SMTP_SECURE", False, "true: TLS from the first byte; false: STARTTLS required")
    smtp_user: str | None = _bare("SMTP_USER", None, "User name, if the server wants one")
    smtp_password: SecretStr | None = _bare("SMTP_PASSWORD", None, "Password of SMTP_USER")
    smtp_from_email: str | None = _bare("SMTP_FROM_EMAIL", None, "Sender's address; needed with SMTP_HOST")
    smtp_from_name: str = _bare("SMTP_FROM_NAME", "", "Sender's name")
    smtp_redirect_to: str | None = _bare(
        "SMTP_REDIRECT_TO", None, "For staging: every mail goes to this address and to nobody else"
    )
    smtp_allow_plain: bool = Field(False, description="Allow SMTP without TLS to a host other than this machine")
    smtp_ca_file: Path | None = Field(None, description="PEM file of the authority that signed the mail server")
    smtp_timeout_seconds: float = Field(
        10.0,
        gt=0,
        le=600,
        description="Longest wait for one answer of the mail server, seconds; below the time limit of queue email",
    )
    outbox_dir: Path = Field(Path(".queue-worker/outbox"), description="Folder for .eml files")
    email_unknown: Literal["resend", "hold"] = Field(
        "resend", description="A mail that may have been sent before a crash: resend it, or hold it for a person"
    )
    email_templates: Path | None = Field(None, description="Folder with your own e-mail templates")
    email_max_recipients: int = Field(50, ge=1, le=1000, description="Recipients of one mail, at most")

    reports_dir: Path = Field(Path(".queue-worker/reports"), description="Folder where finished reports are put")
    reports_bucket: str = Field("", description="Supabase Storage bucket for reports (empty: the folder)")
    reports_templates: Path | None = Field(None, description="Folder with your own report templates")
    reports_allowed: Annotated[dict[str, str], BeforeValidator(_reports)] = Field(
        {}, description="Reports that may run: name=schema.function,..."
    )

    payments_provider: Literal["sandbox", "stripe"] = Field("sandbox", description="sandbox (moves no money) or stripe")
    payments_source: str = Field("", description="SQL function schema.name that reads amount and account by id")
    payments_result: str = Field("", description="SQL function schema.name that is told the result")
    payments_currencies: Names = Field(("EUR", "USD"), description="Currencies that may be charged, ISO 4217")
    payments_max_minor: int = Field(
        1_000_000, ge=1, le=99_999_999, description="Largest amount of one payment, in minor units (cents)"
    )
    stripe_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("QUEUE_WORKER_STRIPE_API_KEY", "STRIPE_API_KEY"),
        description="Stripe's secret key; STRIPE_API_KEY works too",
    )
    stripe_api_base: str | None = Field(None, description="Another address of Stripe's API, for tests")
    stripe_webhook_secret: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("QUEUE_WORKER_STRIPE_WEBHOOK_SECRET", "STRIPE_WEBHOOK_SECRET"),
        description="Secret of your webhook endpoint at Stripe (whsec_...); STRIPE_WEBHOOK_SECRET works too",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # load_settings() reads the sources itself, so that the source of each value is known.
        return (init_settings,)

    @field_validator("database_url")
    @classmethod
    def _postgres(cls, value: SecretStr | None) -> SecretStr | None:
        return SecretStr(check_postgres_url(value.get_secret_value().strip())) if value else None

    @field_validator("db_schema")
    @classmethod
    def _schema(cls, value: str) -> str:
        if not schema_name.fits(value):
            raise ValueError(schema_name.RULE)
        return value

    @field_validator("supabase_url", "stripe_api_base", "resend_api_base")
    @classmethod
    def _web(cls, value: str | None) -> str | None:
        if value and not _URL.match(value):
            raise ValueError("must begin with https:// (or http://) and a host")
        return value.rstrip("/") if value else None

    @field_validator("app")
    @classmethod
    def _module(cls, value: str | None) -> str | None:
        if value and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value):
            raise ValueError("must be module:name, for example mypkg.jobs:app")
        return value

    @field_validator("only")
    @classmethod
    def _queues(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(dict.fromkeys(check_queue_name(name) for name in value))
        except ConfigError as error:
            raise ValueError(f"names an {error}") from None

    @field_validator("smtp_from_email", "smtp_redirect_to")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value and not re.fullmatch(r"[^\s@<>,;:\"()\x00-\x1f]+@[^\s@<>,;:\"()\x00-\x1f]+", value):
            raise ValueError("must be one address such as hello@example.com")
        return value

    @field_validator("smtp_from_name", "smtp_user", "smtp_host", "db_host", "db_user", "db_name")
    @classmethod
    def _one_line(cls, value: str | None) -> str | None:
        if value and re.search(r"[\x00-\x1f\x7f\u2028\u2029]", value):
            raise ValueError("must not hold control characters or line breaks")
        return value

    @field_validator("payments_currencies")
    @classmethod
    def _currencies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        upper = tuple(code.upper() for code in value)
        if not upper or not all(re.fullmatch("[A-Z]{3}", code) for code in upper):
            raise ValueError("must be three-letter codes such as EUR,USD")
        return upper

    @field_validator("payments_source", "payments_result")
    @classmethod
    def _function(cls, value: str) -> str:
        return _sql_name(value)
