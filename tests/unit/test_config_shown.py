"""Settings: the database they lead to, what people are shown of them, and `.env.example`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from queue_worker.config import QueueOptions, Setting, Settings, load_settings
from queue_worker.config_options import OPTIONS
from queue_worker.config_sources import variables
from queue_worker.config_text import postgres_url, show
from queue_worker.errors import ConfigError
from queue_worker.redaction import redact, register_secret

EXAMPLE = Path(__file__).parents[2] / ".env.example"
SECRETS = {
    "DATABASE_URL": "postgresql://ann:hunter2-dsn@db.example.com:5432/app?sslmode=require",
    "SUPABASE_SERVICE_ROLE_KEY": "eyJhbGciOiJIUzI1NiJ9.c2VjcmV0.c2lnbmF0dXJl",
    "SMTP_PASSWORD": "hunter2-smtp",
    "QUEUE_WORKER_STRIPE_API_KEY": "sk_live_hunter2stripe",
}
PARTS = ("hunter2-dsn", "hunter2-smtp", "hunter2stripe", "c2VjcmV0")

SetEnv = Callable[..., None]
EnvFile = Callable[..., Path]


def refusal() -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings()
    return str(caught.value)


def source_of(settings: Settings, name: str) -> Setting:
    return next(line for line in settings.explain() if line.name == name)


def test_a_url_is_made_of_the_parts_and_libpq_reads_it_back(env: SetEnv) -> None:
    env(DB_HOST="db.example.com", DB_PORT="6543", DB_USER="a/b@c", DB_PASSWORD="p@s:s/w?r#d%20 é", DB_NAME="my db")
    settings = load_settings()
    assert settings.transport == "postgres"
    assert conninfo_to_dict(settings.dsn or "") == {
        "host": "db.example.com", "port": "6543", "user": "a/b@c", "password": "p@s:s/w?r#d%20 é", "dbname": "my db",
    }  # fmt: skip


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=20)


@given(user=WORDS, password=WORDS, database=WORDS, host=st.sampled_from(["localhost", "::1", "/run/postgresql"]))
def test_any_login_survives_the_url(user: str, password: str, database: str, host: str) -> None:
    url = postgres_url(host, 5432, user, password, database)
    read = conninfo_to_dict(url)
    assert (read["user"], read["password"], read["dbname"], read["host"]) == (user, password, database, host)
    # Its own URL is always accepted, and a password that cannot be a part of the rest is never shown.
    load_settings({"database_url": url}, Path(os.devnull))
    if len(password) > 5 and "*" not in password and password not in (user + database + host + "postgresql"):
        assert password not in show(Settings(database_url=url).database_url)


def test_database_url_beats_the_parts_and_says_so(env: SetEnv) -> None:
    env(DATABASE_URL="postgresql://localhost/x", DB_HOST="other")
    settings = load_settings()
    assert settings.dsn == "postgresql://localhost/x"
    assert settings.warnings == ("DB_HOST is ignored because DATABASE_URL is set",)


def test_key_value_connection_strings_are_accepted_and_masked(env: SetEnv) -> None:
    env(DATABASE_URL="host=localhost password=hunter2-dsn dbname=x")
    settings = load_settings()
    assert "hunter2-dsn" in settings.secret_values()
    assert "hunter2" not in str(settings.explain())


def test_no_database_at_all_is_one_line_that_names_the_ways() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings().require_database()
    text = str(caught.value)
    assert "\n" not in text
    for name in ("DATABASE_URL", "SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "QUEUE_WORKER_EMBEDDED=1"):
        assert name in text


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"DB_USER": "ann"}, "DB_USER is set without DB_HOST: set DB_HOST, or DATABASE_URL instead"),
        ({"SUPABASE_SERVICE_ROLE_KEY": "k"}, "SUPABASE_SERVICE_ROLE_KEY is set without SUPABASE_URL"),
    ],
)
def test_half_a_database_is_named(values: dict[str, str], line: str, env: SetEnv) -> None:
    env(**values)
    with pytest.raises(ConfigError) as caught:
        load_settings().require_database()
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("values", "transport"),
    [
        ({"DATABASE_URL": "postgres://h/x"}, "postgres"),
        ({"QUEUE_WORKER_EMBEDDED": "1"}, "embedded"),
        ({"SUPABASE_URL": "https://x.supabase.co/", "SUPABASE_SERVICE_ROLE_KEY": "k"}, "supabase"),
        ({"SUPABASE_URL": "https://x.supabase.co", "DATABASE_URL": "postgres://h/x"}, "postgres"),
    ],
)
def test_the_transport_follows_from_what_is_set(values: dict[str, str], transport: str, env: SetEnv) -> None:
    env(**values)
    settings = load_settings()
    settings.require_database()
    assert settings.transport == transport


def test_no_secret_is_shown_by_repr_or_explain(env: SetEnv) -> None:
    env(**SECRETS, SUPABASE_URL="https://x.supabase.co", DB_PASSWORD="hunter2-db")
    settings = load_settings()
    shown = repr(settings) + str(settings) + str(settings.explain()) + settings.model_dump_json()
    assert not [part for part in (*PARTS, "hunter2-db") if part in shown]
    assert source_of(settings, "DATABASE_URL").value == (
        "postgresql://ann:********@db.example.com:5432/app?sslmode=require"
    )
    for part in PARTS:
        assert any(part in value for value in settings.secret_values())
    assert "hunter2-dsn" in settings.secret_values()


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_no_secret_is_shown_by_an_error(name: str, env: SetEnv) -> None:
    env(**SECRETS, SMTP_PORT="x")
    text = refusal()
    env(SMTP_PORT="1", QUEUE_WORKER_EMBEDDED="1")
    text += refusal()
    env(**dict.fromkeys(("SMTP_PORT", "QUEUE_WORKER_RETRY", "SMTP_FROM_EMAIL", "SUPABASE_URL"), SECRETS[name]))
    text += refusal()
    assert not [part for part in PARTS if part in text]


def test_the_password_is_registered_in_both_spellings(env: SetEnv) -> None:
    env(DATABASE_URL="postgresql://ann:p%40ss%2Fword@h/x")
    assert {"p%40ss%2Fword", "p@ss/word"} <= set(load_settings().secret_values())


@pytest.mark.parametrize(
    ("url", "spellings"),
    [
        ("postgresql://h/x?sslmode=require&password=hunter%402", {"hunter%402", "hunter@2"}),
        ("postgresql://ann:0penUp%21@h/x?password=sesame-2", {"0penUp%21", "0penUp!", "sesame-2"}),
        ("host=h password='sesa me' dbname=x", {"sesa me"}),
        (r"host=h password = 'it\'s c' dbname=x", {r"it\'s c", "it's c"}),
        (r"password=sesa\ mo host=h", {r"sesa\ mo", "sesa mo"}),
    ],
)
def test_the_password_is_registered_wherever_it_stands(url: str, spellings: set[str], env: SetEnv) -> None:
    env(DATABASE_URL=url)
    settings = load_settings()
    assert set(settings.secret_values()) == {url, *spellings}
    assert conninfo_to_dict(url)["password"] in spellings
    for secret in settings.secret_values():
        register_secret(secret)
    told = redact(f"cannot log in with {max(spellings, key=len)} or {min(spellings, key=len)}.")
    assert not [one for one in spellings if one in told]


def test_explain_lists_every_setting_once_with_its_source(env: SetEnv) -> None:
    env(QUEUE_WORKER_QUEUES__EMAIL__BATCH_SIZE="50", QUEUE_WORKER_RETRY="10,60")
    lines = load_settings({"concurrency": 9}).explain()
    names = [line.name for line in lines]
    assert len(names) == len(set(names)) == len(variables(Settings)) + len(OPTIONS) + 1
    assert ("QUEUE_WORKER_CONCURRENCY", "9", "command line") in lines
    assert ("QUEUE_WORKER_RETRY", "10,60", "environment") in lines
    assert lines[-1] == ("QUEUE_WORKER_QUEUES__EMAIL__BATCH_SIZE", "50", "environment")


def example_values() -> dict[str, str]:
    found = re.findall(r"^#?([A-Z][A-Z_]*)=(.*)$", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == len(dict(found))
    return dict(found)


def test_the_example_file_holds_every_setting_with_its_default() -> None:
    assert example_values() == {line.name: line.value for line in load_settings().explain()}


def test_every_line_of_the_example_file_says_what_the_setting_does() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    described = {variables(Settings)[name][0]: field.description for name, field in Settings.model_fields.items()} | {
        f"QUEUE_WORKER_{name.upper()}": field.description for name, field in QueueOptions.model_fields.items()
    }
    for number, line in enumerate(lines):
        name = re.match(r"#([A-Z][A-Z_]*)=", line)
        if name:
            assert lines[number - 1] == f"# {described[name[1]]}"


def test_the_example_file_as_it_is_and_without_its_signs_changes_nothing(env_file: EnvFile) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert not any(dotenv_values(EXAMPLE).values())
    plain = {(line.name, line.value) for line in load_settings().explain()}
    env_file(text)
    assert {(line.name, line.value) for line in load_settings().explain()} == plain
    env_file(re.sub(r"^#(?=[A-Z][A-Z_]*=)", "", text, flags=re.MULTILINE))
    settings = load_settings()
    assert {(line.name, line.value) for line in settings.explain()} == plain
    assert settings.warnings == ()
