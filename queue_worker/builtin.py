"""The built-in processors, made from the settings; each module is loaded only where its queue runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from queue_worker.config import Settings
from queue_worker.errors import ConfigError
from queue_worker.processor import Processor

if TYPE_CHECKING:
    from queue_worker.processors.email_config import EmailConfig
    from queue_worker.processors.payment_config import PaymentsConfig
    from queue_worker.storage import Storage


def builtin_processors(
    settings: Settings, *, skip: Collection[str], only: Collection[str]
) -> Iterator[tuple[str, Processor]]:
    """Yield (queue, processor) for each built-in queue not in `skip`, and in `only` unless that is empty.

    Raises ConfigError where a setting that the processor cannot do without is missing.
    """
    for queue, make in _MAKERS.items():
        if queue not in skip and (not only or queue in only):
            yield queue, make(settings)


def email_config(settings: Settings) -> EmailConfig:
    """Return how mail leaves, as the settings say."""
    from queue_worker.processors.email_config import EmailConfig

    return EmailConfig(
        provider=settings.email_provider,
        api_key=settings.resend_api_key.get_secret_value() if settings.resend_api_key else "",
        api_base=settings.resend_api_base,
        redirect_to=settings.smtp_redirect_to or "",
        host=settings.smtp_host or "",
        port=settings.smtp_port,
        secure=settings.smtp_secure,
        user=settings.smtp_user or "",
        password=settings.smtp_password.get_secret_value() if settings.smtp_password else "",
        from_email=settings.smtp_from_email or "",
        from_name=settings.smtp_from_name,
        allow_plain=settings.smtp_allow_plain,
        ca_file=settings.smtp_ca_file,
        timeout_seconds=settings.smtp_timeout_seconds,
        outbox_dir=settings.outbox_dir,
        unknown=settings.email_unknown,
        templates_dir=settings.email_templates,
        max_recipients=settings.email_max_recipients,
    )


def storage_of(settings: Settings) -> Storage:
    """Return where reports are published and attachments are read: the bucket where one is set, else the folder."""
    if settings.reports_bucket and settings.supabase_url and settings.supabase_service_role_key:
        from queue_worker.storage_supabase import SupabaseStorage

        key = settings.supabase_service_role_key.get_secret_value()
        return SupabaseStorage(settings.supabase_url, key, settings.reports_bucket)
    from queue_worker.storage import LocalStorage

    return LocalStorage(settings.reports_dir)


def _email(settings: Settings) -> Processor:
    from queue_worker.processors.email import make_processor

    return make_processor(email_config(settings), storage_of(settings))


def _reports(settings: Settings) -> Processor:
    from queue_worker.processors.reports import ReportsConfig, make_processor

    config = ReportsConfig(reports=settings.reports_allowed, templates_dir=settings.reports_templates)
    return make_processor(config, storage_of(settings))


def payments_config(settings: Settings) -> PaymentsConfig:
    """Return how payments are made, as the settings say; raises ConfigError where nobody chose a provider."""
    from queue_worker.processors.payment_config import PaymentsConfig

    # Real bills must not be settled by a provider that nobody chose.
    if settings.payments_source and not settings.is_set("payments_provider"):
        raise ConfigError("QUEUE_WORKER_PAYMENTS_PROVIDER is not set: sandbox (moves no money) or stripe")
    return PaymentsConfig(
        source=settings.payments_source,
        result=settings.payments_result,
        provider=settings.payments_provider,
        currencies=settings.payments_currencies,
        max_minor=settings.payments_max_minor,
        stripe_api_key=settings.stripe_api_key.get_secret_value() if settings.stripe_api_key else "",
        stripe_api_base=settings.stripe_api_base,
    )


def _payments(settings: Settings) -> Processor:
    from queue_worker.processors.payments import make_processor

    return make_processor(payments_config(settings))


_MAKERS: Mapping[str, Callable[[Settings], Processor]] = MappingProxyType(
    {"email": _email, "reports": _reports, "payments": _payments}
)
