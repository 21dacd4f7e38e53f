"""Starts worker processes by fork, so that a test may have many of them; run as a script.

Reads one JSON object a line: {"id": 1, "database": {...}, "queues": [...], "options": {...}, "settings": {...}}.
Answers {"id": 1, "pid": ...}, later {"pid": ..., "code": ...} (negative: the signal that killed it). Ends its children
with itself. What a handler does is in its payload, see `handle`.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

from queue_worker import App, Job, events
from queue_worker.config import load_settings
from queue_worker.service import Service


def handle(job: Job[dict[str, Any]]) -> None:
    """Do what the payload says; every start leaves a row in `starts`."""
    do = job.payload.get("do", "nothing")
    if do != "nothing":
        job.call("public.note_start", key=str(job.payload.get("key", job.msg_id)), process=os.getpid())
    if do == "effect":
        job.finish("public.note_effect", key=str(job.payload["key"]))
    elif do == "exit":
        os._exit(9)
    elif do == "segv":
        ctypes.string_at(0)
    elif do == "wait":
        wait(job.payload["lock"])
    elif do == "once":

        def call(key: str, lock: str) -> str:
            job.call("public.note_start", key=f"call {key}", process=os.getpid())
            wait(lock)
            return "called"

        job.once("k", call, job.payload["lock"], unknown=job.payload["unknown"])


def wait(path: str) -> None:
    """Wait for as long as the test holds the lock."""
    with Path(path).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)


def app_of(queues: list[str], options: dict[str, Any]) -> App:
    app = App(builtins=False)
    module, _, name = options.pop("handler", "tests.worker.scripts.zygote:handle").partition(":")
    handler = handle if module == "tests.worker.scripts.zygote" else getattr(importlib.import_module(module), name)
    for queue in queues:
        app.processor(queue, **options)(handler)
    return app


def work(order: dict[str, Any]) -> int:
    log = Path(order["log"]).open("a", buffering=1)  # noqa: SIM115 - open as long as the process
    ends = events.subscribe("*", lambda name, fields: print(json.dumps([name, fields], default=str), file=log))
    settings = load_settings({**order["database"], "state_dir": order["state"], **order["settings"]})
    try:
        return Service(settings, app_of(order["queues"], order["options"])).run()
    finally:
        ends()


def start(order: dict[str, Any], wake: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.close(wake)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(os.open(order["log"] + ".out", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    code = 99
    try:
        code = work(order)
    finally:
        # As sys.exit() would, but a forked child must not run what its parent has registered.
        os._exit(code)


def reap(children: set[int]) -> None:
    for pid in list(children):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            children.discard(pid)
            print(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}), flush=True)


def main() -> None:
    ours, theirs = os.pipe()
    for end in (ours, theirs):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: set[int] = set()
    waiting = b""
    while True:
        ready, _, _ = select.select([0, ours], [], [])
        if ours in ready:
            os.read(ours, 4096)
            reap(children)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                break
            *lines, waiting = (waiting + data).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = start(order, ours)
                children.add(pid)
                print(json.dumps({"id": order["id"], "pid": pid}), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
