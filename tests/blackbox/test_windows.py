"""What must work on Windows: import, send, look. Run where the modules that only POSIX has are missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psycopg

from tests.blackbox.program import REPOSITORY, Program

# Windows has none of these modules, functions, signals and constants (the library reference, "Availability").
WITHOUT = """
import os, signal, socket, sys
# The libraries of this system are those for POSIX: they must not be cut off from what they are made for.
import asyncio, concurrent.futures, getpass, logging, multiprocessing, platform, random, shutil, subprocess, tempfile
import importlib.resources, multiprocessing.connection, multiprocessing.util, ssl, uuid, zipfile
import apscheduler.triggers.cron, httpx, jinja2, loguru, pgmq, psycopg, psycopg_pool, pydantic_settings, rich.console
import rich.live, rich.table, supabase, tenacity, typer.core, typer.main, typer.rich_utils, xlsxwriter

class Missing:
    names = {"fcntl", "grp", "posix_ipc", "pty", "pwd", "resource", "syslog", "termios", "tty"}
    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in Missing.names:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
for module, names in (
    (os, "fork forkpty getuid geteuid getgid getegid setuid setgid setsid killpg getpgid getpgrp sched_getaffinity "
         "register_at_fork waitid chown fchown uname sysconf getloadavg mkfifo WNOHANG"),
    (signal, "SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGQUIT SIGTSTP pthread_sigmask pthread_kill sigwait "
             "setitimer"),
    (socket, "AF_UNIX"),
):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
sys.platform = "win32"
"""

SEND = """
import psycopg
from queue_worker import App, Job, Queue, close

app = App(builtins=False)

@app.processor("work")
def work(job: Job) -> None: ...

if __name__ == "__main__":
    print(Queue("work").send({"n": 1}), work.send({"n": 2}))
    close()
"""

COMMANDS = """
import json
from queue_worker import App, Job
from queue_worker.cli import program

app = App(builtins=False)

@app.processor("work")
def work(job: Job) -> None: ...

if __name__ == "__main__":
    for words in json.loads(sys.argv[1]):
        print("exit code", program.run(words), "of", *words, flush=True)
"""


def without_posix(program: Program, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    Path("without.py").write_text(WITHOUT + code)
    return subprocess.run(
        [sys.executable, "without.py", *arguments],
        env=program.environment(PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_import_send_and_look_need_nothing_of_posix(dsn: str, db: psycopg.Connection[tuple]) -> None:
    db.execute("select queue_worker.create_queue('work')")
    done = without_posix(Program(DATABASE_URL=dsn), SEND)
    assert (done.stdout, done.stderr) == ("1 2\n", "")
    commands = [
        ["send", "work", '{"n": 3}'],
        ["status"],
        ["show", "work", "1"],
        ["migrate", "--check"],
        # One process with threads works, too.
        ["start", "--app", "without:app", "-q", "work", "--burst"],
    ]
    said = without_posix(Program(DATABASE_URL=dsn), COMMANDS, json.dumps(commands)).stdout
    for words in commands:
        assert f"exit code 0 of {' '.join(words)}\n" in said
    assert db.execute("select count(*) from pgmq.a_work").fetchone() == (3,)


def test_what_needs_posix_says_so(dsn: str) -> None:
    Path("jobs.py").write_text(
        "from queue_worker import App, Job\napp = App(builtins=False)\n"
        '@app.processor("work", isolation="process")\ndef work(job: Job) -> None: ...\n'
    )
    needy = {
        "init": ["init", "pm2"],
        "the demo": ["demo"],
        "--processes": ["start", "--processes", "2"],
        "--max-memory": ["start", "--max-memory", "1GB"],
        'isolation="process" (queue work)': ["start", "--app", "jobs:app", "--burst"],
    }
    done = without_posix(Program(DATABASE_URL=dsn), COMMANDS, json.dumps(list(needy.values())))
    for what, words in needy.items():
        assert f"exit code 78 of {' '.join(words)}\n" in done.stdout
        assert f"queue-worker: {what} needs Linux or macOS; on Windows, use a container or WSL\n" in done.stderr
