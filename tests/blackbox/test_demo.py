"""`queue-worker demo`: what it says must be so, also looked at from outside; and nothing of it may outlive it."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.blackbox.program import COMMAND, REPOSITORY, Done, Program
from tests.helpers import wait_until

SUBJECTS = {
    "Welcome to Лавка, Анна": ["anna@example.com"],
    "欢迎，李伟": ["li.wei@example.com"],
    "환영합니다, 민준": ["min.jun@example.com", "ann@example.com"],
    "Payments · Платежи · 付款 · 결제": ["boss@example.com"],
}


def demo(*options: str) -> Done:
    """Run the demo."""
    # A user's own settings must neither reach it nor be used by it.
    settings = {"DATABASE_URL": "postgresql://127.0.0.1:1/mine", "QUEUE_WORKER_MAX_ATTEMPTS": "1"}
    done = Program(**settings, COLUMNS="200")("demo", *options)
    assert done.code == 0, done.err + done.out
    return done


def check_readme(said: str) -> None:
    """The README shows the end of what the demo prints, without numbers of files, sizes and seconds."""
    page = (REPOSITORY / "README.md").read_text()
    [shown] = [text for text in re.findall(r"^```text\n(.*?)^```", page, re.S | re.M) if "checks hold" in text]

    def plain(text: str) -> set[str]:
        return {re.sub(r"mails/\d|pdf \d+ bytes|[\d.]+ s$", "N", line.rstrip()) for line in text.splitlines()}

    assert plain(shown) - {"..."} <= plain(said)


def check_figures(summary: dict[str, Any]) -> None:
    assert summary["ok"] is True
    assert [one for one in summary["checks"] if not one["ok"]] == []
    queues = {one["queue"]: (one["done"], one["retried"], one["dead"], one["left"]) for one in summary["queues"]}
    assert queues == {"email": (4, 0, 1, 0), "payments": (6, 5, 1, 0), "reports": (1, 0, 0, 0)}
    assert {one["account"]: (one["status"], one["failures"]) for one in summary["payments"]} == {
        "ann": ("succeeded", 0), "boris": ("succeeded", 0), "li-wei": ("succeeded", 0), "min-jun": ("succeeded", 0),
        "declined": ("failed", 0), "fails_twice": ("succeeded", 2), "always_fails": ("pending", 4),
    }  # fmt: skip
    charged = [one["amount_minor"] for one in summary["charges"] if one["status"] == "succeeded"]
    assert sorted(charged) == [2500, 3550, 4990, 8000, 12500]
    assert {one["subject"]: one["to"] for one in summary["mails"]} == SUBJECTS
    assert {(one["queue"], one["reason"]) for one in summary["dead_letters"]} == {
        ("email", "invalid"), ("payments", "rejected"),
    }  # fmt: skip


def check_files(summary: dict[str, Any], formats: list[str]) -> None:
    files = {Path(one["path"]).suffix[1:]: Path(one["path"]) for one in summary["files"]}
    assert sorted(files) == sorted(formats)
    assert [one["bytes"] for one in summary["files"]] == [files[kind].stat().st_size for kind in sorted(files)]
    with files["csv"].open(encoding="utf-8-sig", newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["description"] for row in listed][:4] == ["Order 1001", "Заказ 1002", "订单 1003", "주문 1004"]
    mails = [message_from_bytes(Path(one["file"]).read_bytes(), policy=policy.default) for one in summary["mails"]]
    assert {str(mail["Subject"]) for mail in mails} == set(SUBJECTS)
    [report] = [mail for mail in mails if str(mail["Subject"]).startswith("Payments")]
    attached = [part.get_payload(decode=True) for part in report.iter_attachments()]
    assert sorted(attached) == sorted(path.read_bytes() for path in files.values())


def test_the_demo_does_what_it_says_and_does_it_again() -> None:
    check_readme(demo().out)
    begin = time.monotonic()
    again = demo("--json").json
    assert again["seconds"] <= time.monotonic() - begin
    check_figures(again)
    check_files(again, ["csv", "pdf"])
    assert len(list(Path(".queue-worker/demo/mails").iterdir())) == 4
    assert not Path(".queue-worker/reports").exists()
    look(again)


def look(summary: dict[str, Any]) -> None:
    """Follow the demo's own hints: its database can be looked at afterwards."""
    commands = summary["look"]["commands"]
    assert commands[0] == "queue-worker status --env-file .queue-worker/demo/demo.env"
    queues = {one["queue"]: one["dead"] for one in Program().ok(*commands[0].split()[1:], "--json").json["queues"]}
    assert queues == {"email": 1, "payments": 1, "reports": 0}
    [letter] = Program().ok(*commands[1].split()[1:], "--json").json
    assert letter["payload"]["new"]["account"] == "always_fails"
    [message] = Program().ok(*commands[2].split()[1:], "--json").json
    assert (message["state"], len(message["failures"])) == ("archived", 2)


@pytest.fixture
def without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes modules as good as not installed, in every process of the test's programs."""

    def hide(*modules: str) -> None:
        (tmp_path / "lib").mkdir()
        lines = ["import sys", *(f"sys.modules[{name!r}] = None" for name in modules)]
        (tmp_path / "lib" / "sitecustomize.py").write_text("\n".join(lines))
        path = filter(None, [str(tmp_path / "lib"), os.environ.get("PYTHONPATH", "")])
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))

    return hide


def test_without_the_pdf_packages_the_report_is_html(without: Callable[..., None]) -> None:
    without("fpdf", "fontTools", "noto_cjk_sans_otc")
    done = Program()("demo", "--dir", "here")
    assert done.code == 0, done.err + done.out
    assert "pip install 'queue-worker[pdf]'" in done.out
    assert "checks hold" in done.out
    assert sorted(path.suffix for path in Path("here/reports").glob("*.*") if path.is_file()) == [".csv", ".html"]


def test_without_its_mail_server_the_demo_names_the_package(without: Callable[..., None]) -> None:
    without("aiosmtpd", "aiosmtpd.smtp")
    done = Program()("demo")
    assert (done.code, done.line) == (78, "the demo needs aiosmtpd: pip install 'queue-worker[embedded]'")


def test_a_worker_that_dies_makes_the_demo_fail(without: Callable[..., None]) -> None:
    without("queue_worker.processors.payment_providers")
    done = Program()("demo", "--json")
    assert done.code == 1
    assert done.json["ok"] is False
    [check] = [one for one in done.json["checks"] if one["name"].startswith("the worker's exit code")]
    assert (check["expected"], check["found"], check["ok"]) == (0, 1, False)


def test_a_folder_with_other_files_is_left_alone(bare: Program) -> None:
    Path("home/reports").mkdir(parents=True)
    Path("home/reports/precious.csv").write_text("a")
    done = bare("demo", "--dir", "home")
    assert done.code == 2
    assert "holds files that are not the demo's" in done.line
    assert Path("home/reports/precious.csv").read_text() == "a"


def processes_of(folder: Path) -> set[int]:
    """The processes that have `folder` in their arguments, environment, working directory or open files."""
    found = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or int(process.name) == os.getpid():
            continue
        try:
            texts = [(process / "cmdline").read_bytes(), (process / "cwd").readlink().as_posix().encode()]
            texts += [link.readlink().as_posix().encode() for link in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(str(folder).encode() in text for text in texts):
            found.add(int(process.name))
    return found


@pytest.fixture
def kept(bare: Program) -> Iterator[subprocess.Popen[str]]:
    """A demo with --keep."""
    process = subprocess.Popen(
        [*COMMAND, "demo", "--keep", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=bare.environment(),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()


def test_keep_leaves_the_database_up_until_ctrl_c(kept: subprocess.Popen[str], bare: Program) -> None:
    assert kept.stdout is not None
    assert kept.stderr is not None
    told = iter(kept.stderr.readline, "")
    assert any(line == "The database stays up until Ctrl+C:\n" for line in told)
    psql, url = next(told).strip(), next(told).strip()
    found = subprocess.run(
        [*shlex.split(psql), "-Atc", "select sum(dead) from queue_worker.queues"], capture_output=True, text=True
    )
    assert (found.stdout, found.stderr) == ("2\n", "")
    with psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from public.payments").fetchone() == (7,)
    # The folder is taken for as long as it is up.
    second = bare("demo")
    assert second.code == 2
    assert second.line.startswith("another demo runs in ")
    kept.send_signal(signal.SIGINT)
    assert kept.wait(20) == 0
    check_figures(json.loads(kept.stdout.read()))
    wait_until(lambda: not processes_of(Path.cwd() / ".queue-worker"), 20)


def test_nothing_is_left_running_after_kill_9(bare: Program, tmp_path: Path) -> None:
    folder = tmp_path / ".queue-worker" / "demo"
    process = subprocess.Popen(
        [*COMMAND, "demo", "--json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=bare.environment()
    )
    try:
        log = folder / "worker.log"
        wait_until(lambda: log.exists() and " ready " in log.read_text(), 30)
        before = processes_of(folder)
        assert len(before) >= 3  # demo, worker, postgres
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until(lambda: not processes_of(folder), 30, lambda: f"left behind: {processes_of(folder)}")
    check_figures(demo("--json").json)
