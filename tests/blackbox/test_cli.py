"""The command line without a worker: settings, mistakes, and what each command prints."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import psycopg
import pytest
from pgmq.install import install_pgmq_from_sql

from queue_worker import __version__
from queue_worker.config import Settings
from queue_worker.config_sources import variables
from tests.blackbox.program import COMMAND, Program


def test_version_and_help(bare: Program) -> None:
    assert bare.ok("--version").out == f"queue-worker {__version__}\n"
    text = bare.ok("--help").out
    for command in ("demo", "start", "migrate", "config", "health", "status", "send", "show", "retry", "clear"):
        assert f"\n  {command} " in text
    assert "--delay" in bare.ok("send", "--help").out


@pytest.mark.parametrize("arguments", [(), ("dead",), ("email",)])
def test_a_group_without_a_command_shows_its_help(bare: Program, arguments: tuple[str, ...]) -> None:
    done = bare(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: queue-worker")


@pytest.mark.parametrize(
    "arguments",
    [("start",), ("migrate",), ("status",), ("send", "email", "{}"), ("show", "email", "1"), ("clear", "email")],
)
def test_without_any_setting_every_command_that_needs_a_database_says_so(
    bare: Program, arguments: tuple[str, ...]
) -> None:
    done = bare(*arguments)
    assert done.code == 78
    for name in ("DATABASE_URL", "SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "QUEUE_WORKER_EMBEDDED"):
        assert name in done.line


def test_a_url_without_its_key_is_a_line_that_names_the_key(bare: Program) -> None:
    done = bare("start", SUPABASE_URL="https://project.supabase.co")
    assert done.code == 78
    assert done.line == "SUPABASE_URL is set without SUPABASE_SERVICE_ROLE_KEY"


def test_an_unreachable_database_is_one_line_and_exit_1(bare: Program) -> None:
    done = bare("status", DATABASE_URL="postgresql://someone:s3cret-pass@127.0.0.1:1/app")
    assert done.code == 1
    assert done.line.startswith("the database cannot be reached: ")
    assert "s3cret-pass" not in done.err


def test_a_database_that_lets_nobody_in_is_one_line_and_exit_78(bare: Program, dsn: str) -> None:
    done = bare("status", DATABASE_URL=re.sub(r"/t_\w+", "/not_there", dsn))
    assert done.code == 78
    assert done.line.startswith("the database refuses this login: ")
    assert done.line.endswith('database "not_there" does not exist; check DATABASE_URL')


def test_a_database_without_the_schema_is_exit_78_and_names_migrate(bare: Program, empty_dsn: str) -> None:
    for arguments in (("start",), ("status",), ("send", "email", "{}"), ("migrate", "--check")):
        done = bare(*arguments, DATABASE_URL=empty_dsn)
        assert done.code == 78
        assert "queue-worker migrate" in done.err


def test_migrate_brings_the_schema_and_says_what_it_did(bare: Program, empty_dsn: str) -> None:
    here = {"DATABASE_URL": empty_dsn}
    planned = bare.ok("migrate", "--dry-run", **here).out.splitlines()
    assert "apply 0001_core.sql" in planned
    assert bare("migrate", "--check", **here).code == 78
    lines = bare.ok("migrate", **here).out.splitlines()
    assert any(line.startswith("applied 0001_core.sql in ") for line in lines)
    assert lines[-1].endswith("which is current")
    assert bare.ok("migrate", "--check", **here).out == bare.ok("migrate", **here).out
    assert bare.ok("migrate", "--dry-run", **here).out == "nothing to do: the schema is current\n"


def test_migrate_print_needs_no_database_and_its_script_does_the_same(bare: Program, empty_dsn: str) -> None:
    script = bare.ok("migrate", "--print").out
    install_pgmq_from_sql(dsn=empty_dsn)
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(script.encode())
    assert bare.ok("migrate", "--check", DATABASE_URL=empty_dsn).out.endswith("which is current\n")


def test_two_modes_of_migrate_at_once_are_refused(bare: Program) -> None:
    done = bare("migrate", "--check", "--print")
    assert (done.code, done.line) == (2, "give one of --check, --dry-run, --print, --supabase and --uninstall")


SECRETS = {
    "DATABASE_URL": "postgresql://app:pw-of-the-database@db.example.com:5432/app",
    "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_abcdefghijkl",
    "SMTP_HOST": "mail.example.com",
    "SMTP_FROM_EMAIL": "hello@example.com",
    "SMTP_USER": "mailer",
    "SMTP_PASSWORD": "pw-of-the-mail-server",
    "QUEUE_WORKER_API_TOKEN": "token-of-the-api-123456",
    "QUEUE_WORKER_STRIPE_API_KEY": "sk_test_51abcdefghijkl",
}
CLEAR = ("pw-of-the-database", "sb_secret_", "pw-of-the-mail-server", "token-of-the-api", "sk_test_")


def test_config_shows_each_value_with_its_source_and_no_secret(bare: Program) -> None:
    Path(".env").write_text("QUEUE_WORKER_BATCH_SIZE=20\nQUEUE_WORKER_QUEUES__EMAIL__CONCURRENCY=2\n")
    Path(".env").chmod(0o600)
    plain = bare.ok("config", **SECRETS)
    found = {row["name"]: row for row in bare.ok("config", "--json", **SECRETS).json}
    assert (found["QUEUE_WORKER_BATCH_SIZE"]["value"], found["QUEUE_WORKER_BATCH_SIZE"]["source"]) == ("20", ".env")
    assert found["QUEUE_WORKER_QUEUES__EMAIL__CONCURRENCY"]["value"] == "2"
    assert found["SMTP_HOST"] == {"name": "SMTP_HOST", "value": "mail.example.com", "source": "environment"}
    assert found["QUEUE_WORKER_CYCLE_SECONDS"]["source"] == "default"
    assert found["DATABASE_URL"]["value"] == "postgresql://app:********@db.example.com:5432/app"
    assert {choices[0] for choices in variables(Settings).values()} <= set(found)
    for name in found:
        assert f"\n{name} " in plain.out
    for text in (plain.out, plain.err, json.dumps(found)):
        assert not [secret for secret in CLEAR if secret in text]


def test_config_works_without_a_database_and_warns(bare: Program) -> None:
    done = bare.ok("config", QUEUE_WORKER_BATCHSIZE="3")
    assert "warning: QUEUE_WORKER_BATCHSIZE (in environment) is not a setting" in done.err
    assert "warning: no database is set" in done.err
    assert "did you mean QUEUE_WORKER_BATCH_SIZE?" in done.err


def test_env_file_replaces_dot_env_and_must_exist(bare: Program) -> None:
    Path("other.env").write_text("QUEUE_WORKER_BATCH_SIZE=7\n")
    for arguments in (("--env-file", "other.env", "config", "--json"), ("config", "--json", "--env-file", "other.env")):
        rows = {row["name"]: row for row in bare.ok(*arguments).json}
        assert rows["QUEUE_WORKER_BATCH_SIZE"] == {
            "name": "QUEUE_WORKER_BATCH_SIZE", "value": "7", "source": "other.env"
        }  # fmt: skip
    done = bare("config", "--env-file", "none.env")
    assert (done.code, done.line) == (78, "--env-file none.env: there is no such file")


def test_a_wrong_setting_is_exit_78_and_names_the_variable(bare: Program) -> None:
    done = bare("status", QUEUE_WORKER_BATCH_SIZE="many")
    assert (done.code, done.line) == (78, "QUEUE_WORKER_BATCH_SIZE must be an integer between 1 and 1000")


def test_health_without_a_worker_is_exit_1(bare: Program) -> None:
    done = bare("health")
    assert (done.code, done.out) == (1, "no worker is running here (looked in .queue-worker/run)\n")
    assert bare("health", "--json").json["healthy"] is False


def test_email_check_without_a_server_tells_of_the_outbox(bare: Program) -> None:
    steps = bare.ok("email", "check", "--json").json
    assert steps[-1]["step"] == "outbox"
    assert "SMTP_HOST is not set" in bare.ok("email", "check").out


def test_email_check_names_the_step_that_failed_without_the_password(bare: Program) -> None:
    settings = {**SECRETS, "SMTP_HOST": "127.0.0.1", "SMTP_PORT": "1"}
    done = bare("email", "check", **settings)
    assert done.code == 1
    assert "connect" in done.out.splitlines()[-1]
    assert "FAILED" in done.out.splitlines()[-1]
    assert "pw-of-the-mail-server" not in done.out + done.err


def test_output_into_a_closed_pipe_ends_quietly(bare: Program) -> None:
    process = subprocess.Popen(
        [*COMMAND, "migrate", "--print"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=bare.environment()
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait(30)


def test_a_terminal_that_knows_ascii_alone_gets_escapes_instead_of_an_error(program: Program) -> None:
    program.ok("create", "post")
    program.ok("send", "post", '{"name": "Анна"}')
    shown = program.ok("show", "post", "1", PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert "\\u0410" in shown.out


def test_the_working_directory_may_be_read_only(bare: Program, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    os.chdir(folder)
    assert bare("health").code == 1
    assert bare("config").code == 0


def test_closed_outputs_are_no_error(bare: Program) -> None:
    for redirection, code in ((">&- 2>&-", 0), ("2>&-", 0)):
        line = f"{shlex.join(COMMAND)} config {redirection}"
        done = subprocess.run(["sh", "-c", line], env=bare.environment(), capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (code, b"")
