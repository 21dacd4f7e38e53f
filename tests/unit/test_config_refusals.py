"""Settings: what is refused or warned of, each in one line that names the variable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from queue_worker.builtin import builtin_processors
from queue_worker.config import DECORATOR_OPTIONS, load_settings
from queue_worker.config_options import OPTIONS, resolve
from queue_worker.errors import ConfigError

SetEnv = Callable[..., None]
EnvFile = Callable[..., Path]


def refusal(overrides: Mapping[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(overrides)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.exit_code == 78
    return text


QUOTING = "holds a password with special characters: write @ as %40, / as %2F, ? as %3F, % as %25"


@pytest.mark.parametrize(
    ("name", "value", "rest"),
    [
        ("SMTP_PORT", "abc", "must be an integer between 1 and 65535"),
        ("SMTP_PORT", "0", "must be an integer between 1 and 65535"),
        ("SMTP_PORT", "70000", "must be an integer between 1 and 65535"),
        ("SMTP_SECURE", "perhaps", "must be true or false"),
        ("QUEUE_WORKER_EMBEDDED", "2", "must be true or false"),
        ("QUEUE_WORKER_POOLER", "maybe", "must be one of auto, yes, no"),
        ("QUEUE_WORKER_LOG_LEVEL", "loud", "must be one of TRACE, DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        ("QUEUE_WORKER_GRACE_SECONDS", "nan", "must be a number between 0 and 3600"),
        ("QUEUE_WORKER_STOP_TIMEOUT", "-1", "must be a number above 0 and at most 7200"),
        ("QUEUE_WORKER_BATCH_SIZE", "many", "must be an integer between 1 and 1000"),
        ("QUEUE_WORKER_QUEUES__EMAIL__BATCH_SIZE", "0", "must be an integer between 1 and 1000"),
        ("QUEUE_WORKER_QUEUES__ODD__ON_SUCCESS", "burn", "must be one of archive, delete"),
        ("QUEUE_WORKER_RETRY", "10,x", "must be exponential, fixed, linear or a list of seconds such as 10,60,300"),
        ("DATABASE_URL", "mysql://x", "must begin with postgresql:// (no driver name such as +asyncpg)"),
        ("DATABASE_URL", "postgresql://u:p@w@h/x", QUOTING),
        ("DATABASE_URL", "postgresql://u:p/w@h/x", QUOTING),
        ("SUPABASE_URL", "x.supabase.co", "must begin with https:// (or http://) and a host"),
        ("SMTP_FROM_EMAIL", "a@b.c, d@e.f", "must be one address such as hello@example.com"),
        ("SMTP_FROM_NAME", "a\nBcc: b@c.d", "must not hold control characters or line breaks"),
        ("QUEUE_WORKER_APP", "mypkg", "must be module:name, for example mypkg.jobs:app"),
        (
            "QUEUE_WORKER_REPORTS_ALLOWED",
            "sales",
            "must be a list such as sales=public.sales_report,stock=public.stock_report",
        ),
        ("QUEUE_WORKER_PAYMENTS_SOURCE", "f; drop", "must be a function as schema.function, without arguments"),
        ("QUEUE_WORKER_PAYMENTS_CURRENCIES", "EURO", "must be three-letter codes such as EUR,USD"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable(name: str, value: str, rest: str, env: SetEnv) -> None:
    env(**{name: value})
    assert refusal() == f"{name} {rest}"


def test_the_source_of_a_wrong_value_is_named(env_file: EnvFile) -> None:
    env_file("SMTP_PORT=abc\n")
    assert refusal() == "SMTP_PORT (in .env) must be an integer between 1 and 65535"
    assert refusal({"smtp_port": "x"}) == "--smtp-port must be an integer between 1 and 65535"
    assert load_settings({"smtp_port": 25}).smtp_port == 25


def test_a_secret_under_a_wrong_name_is_not_shown(env: SetEnv) -> None:
    env(SMTP_PORT="hunter2", QUEUE_WORKER_BATCH_SIZE="hunter2", DATABASE_URL="hunter2", SUPABASE_URL="hunter2")
    assert "hunter2" not in refusal()


def test_several_wrong_values_are_told_at_once(env: SetEnv) -> None:
    env(SMTP_PORT="x", DB_PORT="y")
    text = refusal()
    assert "SMTP_PORT must" in text
    assert "; SMTP_PORT" in text or "; PORT" in text


def test_a_wrong_queue_in_the_list_is_named(env: SetEnv) -> None:
    env(QUEUE_WORKER_ONLY="email,Bad")
    assert refusal().startswith("QUEUE_WORKER_ONLY names an invalid queue name 'Bad'")
    env(QUEUE_WORKER_ONLY=" email, reports ,email")
    assert load_settings().only == ("email", "reports")


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (
            {"QUEUE_WORKER_HEARTBEAT_SECONDS": "21"},
            "QUEUE_WORKER_HEARTBEAT_SECONDS must be at most a third of the lease",
        ),
        (
            {"QUEUE_WORKER_QUEUES__EMAIL__LEASE_SECONDS": "30", "QUEUE_WORKER_HEARTBEAT_SECONDS": "20"},
            "must be at most a third of the lease: 20 s for a lease of 30 s (queue 'email')",
        ),
        ({"QUEUE_WORKER_GRACE_SECONDS": "30"}, "GRACE_SECONDS (30) must be less than QUEUE_WORKER_STOP_TIMEOUT (30)"),
        ({"QUEUE_WORKER_EMBEDDED": "1", "DATABASE_URL": "postgresql://h/x"}, "QUEUE_WORKER_EMBEDDED and DATABASE_URL"),
        ({"SUPABASE_URL": "https://x.supabase.co"}, "SUPABASE_SERVICE_ROLE_KEY"),
        ({"QUEUE_WORKER_REPORTS_BUCKET": "b"}, "QUEUE_WORKER_REPORTS_BUCKET needs SUPABASE_URL"),
        ({"SMTP_USER": "ann"}, "SMTP_USER is set without SMTP_PASSWORD"),
        ({"SMTP_HOST": "h"}, "SMTP_HOST is set without SMTP_FROM_EMAIL"),
        (
            {
                "SMTP_HOST": "h",
                "SMTP_FROM_EMAIL": "a@b.example",
                "QUEUE_WORKER_SMTP_TIMEOUT_SECONDS": "8",
                "QUEUE_WORKER_QUEUES__EMAIL__TIMEOUT_SECONDS": "8",
            },
            "QUEUE_WORKER_SMTP_TIMEOUT_SECONDS (8) must be less than the time limit of queue 'email' (8)",
        ),
        ({"QUEUE_WORKER_PAYMENTS_PROVIDER": "stripe"}, "needs QUEUE_WORKER_STRIPE_API_KEY"),
        (
            {
                "QUEUE_WORKER_PAYMENTS_PROVIDER": "stripe",
                "STRIPE_API_KEY": "sk_test_x",
                "QUEUE_WORKER_QUEUES__PAYMENTS__MAX_ATTEMPTS": "12",
            },
            "queue 'payments': retries go on for 123540 s, but stripe forgets an idempotency key after 86400 s",
        ),
        ({"QUEUE_WORKER_QUEUES__EMAIL__SIZE": "1"}, "EMAIL__SIZE: unknown option SIZE of a queue; known: BATCH_SIZE,"),
        (
            {"QUEUE_WORKER_QUEUES__EMAIL": "1"},
            "QUEUE_WORKER_QUEUES__EMAIL must be QUEUE_WORKER_QUEUES__<QUEUE>__<OPTION>",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, str], part: str, env: SetEnv) -> None:
    env(**values)
    assert part in refusal()


def test_the_smtp_timeout_is_free_where_no_mail_server_is_set(env: SetEnv) -> None:
    env(QUEUE_WORKER_SMTP_TIMEOUT_SECONDS="300")
    assert load_settings().smtp_timeout_seconds == 300


def test_payments_want_a_provider_that_somebody_chose(env: SetEnv) -> None:
    env(QUEUE_WORKER_PAYMENTS_SOURCE="public.payment_source", QUEUE_WORKER_PAYMENTS_RESULT="public.payment_result")
    with pytest.raises(ConfigError) as caught:
        list(builtin_processors(load_settings(), skip=(), only=("payments",)))
    assert str(caught.value) == "QUEUE_WORKER_PAYMENTS_PROVIDER is not set: sandbox (moves no money) or stripe"
    env(QUEUE_WORKER_PAYMENTS_PROVIDER="sandbox")
    ((queue, _),) = builtin_processors(load_settings(), skip=(), only=("payments",))
    assert queue == "payments"


def test_payments_by_the_sandbox_may_be_retried_for_ever(env: SetEnv) -> None:
    env(QUEUE_WORKER_QUEUES__PAYMENTS__MAX_ATTEMPTS="12")
    assert load_settings().options_for("payments").max_attempts == 12


@pytest.mark.parametrize(
    ("decorator", "line"),
    [
        ({"tiemout": 3}, "processor 'mine': unknown option 'tiemout'; did you mean timeout?"),
        ({"batch_size": 0}, "processor 'mine': batch_size must be an integer between 1 and 1000"),
        (
            {"heartbeat": 50},
            "processor 'mine': heartbeat must be at most a third of the lease: 50 s for a lease of 60 s (queue 'mine')",
        ),
    ],
)
def test_a_wrong_decorator_option_is_named(decorator: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings().options_for("mine", decorator)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("values", "port", "secure", "warned"),
    [
        ({}, 587, False, False),
        ({"SMTP_SECURE": "true"}, 465, True, False),
        ({"SMTP_PORT": "465"}, 465, True, False),
        ({"SMTP_PORT": "465", "SMTP_SECURE": "false"}, 465, False, True),
        ({"SMTP_PORT": "2525", "SMTP_SECURE": "true"}, 2525, True, False),
    ],
)
def test_smtp_port_and_tls_belong_together(
    values: dict[str, str], port: int, secure: bool, warned: bool, env: SetEnv
) -> None:
    env(**values)
    settings = load_settings()
    assert (settings.smtp_port, settings.smtp_secure, bool(settings.warnings)) == (port, secure, warned)


def test_an_unknown_variable_is_told_with_the_nearest_name(env: SetEnv, env_file: EnvFile) -> None:
    env(QUEUE_WORKER_BATCHSZE="3", SOMETHING_ELSE="x")
    env_file("QUEUE_WORKER_COLOUR=red\n")
    assert load_settings().warnings == (
        "QUEUE_WORKER_BATCHSZE (in environment) is not a setting and is ignored; did you mean QUEUE_WORKER_BATCH_SIZE?",
        "QUEUE_WORKER_COLOUR (in .env) is not a setting and is ignored; `queue-worker config` lists all",
    )


@pytest.mark.parametrize(
    ("mode", "text", "warned"),
    [(0o600, "SMTP_PASSWORD=x\n", False), (0o640, "SMTP_PASSWORD=x\n", True), (0o644, "DB_PORT=3002\n", False)],
)
def test_a_file_with_secrets_that_others_can_read_is_told(
    mode: int, text: str, warned: bool, env_file: EnvFile
) -> None:
    env_file(text, mode=mode)
    expected = f".env holds SMTP_PASSWORD and others may read it (mode {mode:04o}): chmod 600 .env"
    assert load_settings().warnings == ((expected,) if warned else ())


VALUES = st.one_of(st.text(max_size=12), st.integers(), st.floats(), st.none())


# How long a busy machine takes to make up values says nothing about us.
@hypothesis_settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.sampled_from(OPTIONS), VALUES))
def test_any_option_value_is_taken_or_refused_in_one_line(values: dict[str, Any]) -> None:
    names = dict(zip(OPTIONS, DECORATOR_OPTIONS, strict=True))
    try:
        options = resolve("mine", [], {names[option]: value for option, value in values.items()})
    except ConfigError as error:
        told = str(error).splitlines()
        options = None
    if options is None:
        assert len(told) == 1
    else:
        assert options.heartbeat_seconds <= options.lease_seconds / 3
        assert all(value is not None for value in options.model_dump().values())
