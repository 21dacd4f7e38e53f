"""Settings: queue names, and where values come from."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_worker.config import DECORATOR_OPTIONS, Setting, Settings, check_queue_name, load_settings
from queue_worker.config_options import OPTIONS
from queue_worker.errors import ConfigError

SetEnv = Callable[..., None]
EnvFile = Callable[..., Path]


def refusal(overrides: Mapping[str, Any] | None = None, env_file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(overrides, env_file)
    return str(caught.value)


def source_of(settings: Settings, name: str) -> Setting:
    return next(line for line in settings.explain() if line.name == name)


@pytest.mark.parametrize("name", ["email", "readme-queue", "_x", "a", "a" * 47, "a_b-c9", "a-"])
def test_good_queue_names_are_returned(name: str) -> None:
    assert check_queue_name(name) == name


HOSTILE_NAMES = [
    "", "Email", "é", "1a", "-a", "a--b", "a b", 'a"b', "a'b", "a;b", "a$b", "a\n", "\na", "a\x00", "../x", "a/b",
    "a.b", "%I", "a" * 48, "еmail", "a\u200b", "q_email; drop table x", "*", "a--", "a\\", "ａ",
]  # fmt: skip


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, None, 3])
def test_other_queue_names_are_refused_with_the_rule_in_one_line(name: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        check_queue_name(name)
    assert "\n" not in str(caught.value)
    assert "47" in str(caught.value)


@given(st.text(max_size=60))
def test_a_queue_name_is_accepted_exactly_by_the_published_rule(name: str) -> None:
    allowed = re.fullmatch("[a-z_][a-z0-9_-]{0,46}", name) is not None and "--" not in name
    try:
        check_queue_name(name)
    except ConfigError:
        assert not allowed
    else:
        assert allowed


def test_defaults_are_those_of_the_design() -> None:
    options = load_settings().options_for("mine")
    assert (options.cycle_seconds, options.batch_size, options.concurrency) == (5.0, 10, 5)
    assert (options.lease_seconds, options.heartbeat_seconds, options.timeout_seconds) == (60, 20.0, 60.0)
    assert (options.max_attempts, options.retry, options.retry_jitter) == (6, "exponential", 0.0)
    assert (options.on_success, options.archive_days) == ("archive", 7)
    settings = load_settings()
    assert (settings.grace_seconds, settings.stop_timeout) == (25.0, 30.0)


def test_built_in_queues_have_defaults_of_their_own() -> None:
    settings = load_settings()
    assert settings.options_for("email").timeout_seconds == 30.0
    assert settings.options_for("payments").archive_days == 365
    assert settings.options_for("email", {"timeout": 7}).timeout_seconds == 7.0


def test_the_command_line_beats_the_environment_beats_the_file_beats_the_default(
    env: SetEnv, env_file: EnvFile
) -> None:
    assert source_of(load_settings(), "SMTP_PORT") == ("SMTP_PORT", "587", "default")
    env_file("SMTP_PORT=1001\n")
    assert source_of(load_settings(), "SMTP_PORT") == ("SMTP_PORT", "1001", ".env")
    env(SMTP_PORT="1002")
    assert source_of(load_settings(), "SMTP_PORT") == ("SMTP_PORT", "1002", "environment")
    assert source_of(load_settings({"smtp_port": 1003}), "SMTP_PORT") == ("SMTP_PORT", "1003", "command line")
    assert source_of(load_settings({"smtp_port": None}), "SMTP_PORT").source == "environment"


def test_queue_options_take_the_first_of_all_sources(env: SetEnv, env_file: EnvFile) -> None:
    def batch(overrides: Mapping[str, Any] | None = None) -> int:
        return load_settings(overrides).options_for("email", decorator).batch_size

    decorator: dict[str, Any] = {}
    assert batch() == 10
    decorator["batch_size"] = 11
    assert batch() == 11
    env_file("QUEUE_WORKER_BATCH_SIZE=12\n")
    assert batch() == 12
    env_file("QUEUE_WORKER_BATCH_SIZE=12\nQUEUE_WORKER_QUEUES__EMAIL__BATCH_SIZE=13\n")
    assert batch() == 13
    env(QUEUE_WORKER_BATCH_SIZE="14")
    assert batch() == 14
    env(QUEUE_WORKER_QUEUES__EMAIL__BATCH_SIZE="15")
    assert batch() == 15
    assert batch({"batch_size": 16}) == 16
    assert batch({"batch_size": 16, "queues": {"email": {"batch_size": 17}}}) == 17


def test_one_queue_s_variable_leaves_the_others_alone(env: SetEnv) -> None:
    env(QUEUE_WORKER_QUEUES__EMAIL__BATCH_SIZE="50")
    settings = load_settings()
    assert settings.options_for("email").batch_size == 50
    assert settings.options_for("reports").batch_size == 10


@pytest.mark.parametrize(
    ("variable", "queue"),
    [
        ("QUEUE_WORKER_QUEUES__README_QUEUE__BATCH_SIZE", "readme-queue"),
        ("QUEUE_WORKER_QUEUES__README_QUEUE__BATCH_SIZE", "readme_queue"),
        ("queue_worker_queues__readme_queue__batch_size", "readme-queue"),
        ("QUEUE_WORKER_QUEUES__A__B__BATCH_SIZE", "a__b"),
        ("QUEUE_WORKER_QUEUES___X__BATCH_SIZE", "_x"),
    ],
)
def test_queue_names_fold_into_variable_names(variable: str, queue: str, env: SetEnv) -> None:
    env(**{variable: "50"})
    assert load_settings().options_for(queue).batch_size == 50


def test_two_queues_behind_one_variable_are_refused(env: SetEnv) -> None:
    assert load_settings().check_queues(["a-b", "a_b"]) == []
    env(QUEUE_WORKER_QUEUES__A_B__BATCH_SIZE="50")
    with pytest.raises(ConfigError, match=r"QUEUE_WORKER_QUEUES__A_B__\.\.\. means both 'a-b' and 'a_b'"):
        load_settings().check_queues(["a-b", "a_b"])


def test_options_of_a_queue_that_does_not_run_are_told(env: SetEnv) -> None:
    env(QUEUE_WORKER_QUEUES__EMIAL__BATCH_SIZE="50")
    assert load_settings().check_queues(["email"]) == ["QUEUE_WORKER_QUEUES__EMIAL__...: no such queue runs here"]


def test_the_same_option_in_two_spellings_is_refused(env_file: EnvFile) -> None:
    env_file("QUEUE_WORKER_QUEUES__A_B__BATCH_SIZE=5\nQUEUE_WORKER_QUEUES__A-B__BATCH_SIZE=6\n")
    assert "is set twice" in refusal()


def test_an_empty_variable_is_none(env: SetEnv, env_file: EnvFile) -> None:
    env_file("SMTP_PORT=1001\n")
    env(SMTP_PORT="", SMTP_HOST="", QUEUE_WORKER_LOG_LEVEL="")
    assert load_settings().smtp_port == 1001
    assert load_settings().log_level == "INFO"


def test_an_empty_string_on_the_command_line_takes_a_value_away(env: SetEnv) -> None:
    env(DATABASE_URL="postgresql://localhost/x")
    settings = load_settings({"database_url": "", "embedded": True})
    assert settings.transport == "embedded"
    assert source_of(settings, "DATABASE_URL") == ("DATABASE_URL", "", "default")


def test_another_env_file_replaces_dot_env(env_file: EnvFile) -> None:
    env_file("SMTP_PORT=1001\n")
    other = env_file("SMTP_PORT=1002\n", "prod.env")
    assert source_of(load_settings(env_file=other), "SMTP_PORT") == ("SMTP_PORT", "1002", "prod.env")
    assert "missing.env" in refusal(env_file=Path("missing.env"))


def test_env_files_of_windows_are_read() -> None:
    Path(".env").write_bytes(b"\xef\xbb\xbfSMTP_PORT=1001\r\nQUEUE_WORKER_LOG_LEVEL=debug\r\n")
    settings = load_settings()
    assert (settings.smtp_port, settings.log_level) == (1001, "DEBUG")


def test_a_folder_called_dot_env_is_no_settings_file() -> None:
    Path(".env").mkdir()
    assert load_settings().smtp_port == 587


def test_a_file_that_is_not_text_is_named() -> None:
    Path(".env").write_bytes(b"SMTP_PORT=\xff\xfe\n")
    assert refusal() == ".env cannot be read: it is not UTF-8 text"


def test_the_decorator_accepts_short_names_for_every_option() -> None:
    assert len(DECORATOR_OPTIONS) == len(OPTIONS)
    chosen = {"timeout": 5, "lease": 90, "cycle": 1.5, "heartbeat": 10, "retry": [1, 2], "on_success": "delete"}
    options = load_settings().options_for("mine", chosen)
    assert (options.timeout_seconds, options.lease_seconds, options.cycle_seconds) == (5.0, 90, 1.5)
    assert (options.heartbeat_seconds, options.retry, options.on_success) == (10.0, (1.0, 2.0), "delete")


def test_a_short_lease_brings_its_heartbeat_along() -> None:
    assert load_settings({"lease_seconds": 3}).options_for("mine").heartbeat_seconds == 1.0


def test_folders_follow_the_state_folder_unless_they_are_set(env: SetEnv) -> None:
    env(QUEUE_WORKER_STATE_DIR="/var/lib/qw", QUEUE_WORKER_REPORTS_DIR="/srv/reports")
    settings = load_settings()
    assert (settings.outbox_dir, settings.reports_dir) == (Path("/var/lib/qw/outbox"), Path("/srv/reports"))


def test_settings_cannot_be_changed_and_travel_to_child_processes() -> None:
    settings = load_settings({"concurrency": 9})
    with pytest.raises(ValueError, match="frozen"):
        settings.smtp_port = 1
    assert pickle.loads(pickle.dumps(settings)).options_for("mine").concurrency == 9
