"""The program `queue-worker`: its commands, the options that all of them take, and its exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Sequence
from io import TextIOWrapper
from typing import NoReturn

from loguru import logger

from queue_worker.cli.api import register as api
from queue_worker.cli.common import common, root
from queue_worker.cli.dead import register as dead
from queue_worker.cli.demo import register as demo
from queue_worker.cli.doctor import register as doctor
from queue_worker.cli.failure import FAILED, expected, explain, say, show_traceback
from queue_worker.cli.init import register as init
from queue_worker.cli.limits import register as limits
from queue_worker.cli.mail import register as mail
from queue_worker.cli.operate import register as operate
from queue_worker.cli.payments import register as payments
from queue_worker.cli.produce import register as produce
from queue_worker.cli.queues import register as queues
from queue_worker.cli.schedule import register as schedule
from queue_worker.cli.setup import register as setup
from queue_worker.cli.start import register as start
from queue_worker.cli.status import register as status

# The order of `queue-worker --help`.
for _register in (
    demo,
    start,
    api,
    init,
    setup,
    doctor,
    produce,
    status,
    dead,
    operate,
    queues,
    limits,
    schedule,
    mail,
    payments,
):
    _register(root)


def main() -> NoReturn:
    """Run the command that the process was started with, and end with its exit code."""
    leave(run())


def leave(code: int) -> NoReturn:
    """End the process, whatever threads are left: neither a stuck handler nor an app's own thread may keep it up."""
    logger.complete()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    if any(thread is not threading.current_thread() for thread in threading.enumerate()):
        os._exit(code)
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. `arguments`: without the program's name (None: those of the process)."""
    _prepare_streams()
    try:
        result = root(args=arguments, prog_name="queue-worker", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:
        return _failed(error)
    return result if isinstance(result, int) else 0


def _prepare_streams() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
        stream = getattr(sys, name)
        # A terminal or pipe that cannot show a letter gets its number instead of an error.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _failed(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has gone; the interpreter must not fail again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    code, line = explain(error)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        if line.startswith("Usage: "):
            print(line, file=sys.stderr)  # a group without a command: typer makes its help the error
        elif line:
            say(line)
        if common.verbose and (not expected(error) or error.__cause__ is not None):
            show_traceback(error)
    return code
