"""The program `queue-worker` as a user has it: another process, with its arguments, environment and exit code."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.blackbox import forks
from tests.helpers import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
# Variables that an interpreter reads when it starts. Commands that start themselves again want to be started too.
_FROM_THE_START = ("PYTHON", "LANG", "LC_", "TERM", "COLUMNS", "NO_COLOR")

COMMAND = [sys.executable, "-m", "queue_worker"]


class Done:
    """How a command ended."""

    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        self.code = process.returncode
        self.out = process.stdout
        self.err = process.stderr

    @property
    def json(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """The one line on standard error, without the program's name; standard output must be empty."""
        assert self.out == ""
        assert self.err.startswith("queue-worker: ")
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("queue-worker: ").rstrip("\n")


class Program:
    """Runs `queue-worker` in the working directory with `variables` on top of the environment."""

    def __init__(self, **variables: str) -> None:
        self.variables = variables

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of the commands."""
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
        return {**os.environ, "PYTHONPATH": path, **self.variables, **more}

    def __call__(self, *arguments: str, stdin: str | bytes = "", **more: str) -> Done:
        """Run a command to its end; `more` are variables for it alone."""
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        environment = self.environment(**more)
        parents = arguments[:1] == ("demo",) or "--processes" in arguments or "--reload" in arguments
        if parents or any(name.startswith(_FROM_THE_START) for name in {**self.variables, **more}):
            process = subprocess.run(
                [*COMMAND, *arguments], input=raw, capture_output=True, env=environment, timeout=60
            )
        else:
            process = forks.run(arguments, environment, raw, 60)
        done = Done(
            subprocess.CompletedProcess(
                process.args, process.returncode, process.stdout.decode(), process.stderr.decode()
            )
        )
        assert "Traceback" not in done.err, done.err
        return done

    def ok(self, *arguments: str, **more: Any) -> Done:
        """Run a command that must end with exit code 0."""
        done = self(*arguments, **more)
        assert done.code == 0, done.err
        return done

    @contextlib.contextmanager
    def running(self, *arguments: str, pass_fds: Sequence[int] = (), **more: str) -> Iterator[Worker]:
        """Run `queue-worker start` beside the block; killed at its end if it still runs."""
        with Path("worker.log").open("wb") as log:
            process = subprocess.Popen(
                [*COMMAND, "start", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(**more),
                pass_fds=pass_fds,
            )
        worker = Worker(process)
        try:
            yield worker
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


class Worker:
    """A running `queue-worker start`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    @property
    def log(self) -> str:
        """What it has written so far."""
        return Path("worker.log").read_text()

    def ready(self) -> None:
        """Wait until it has announced itself."""
        wait_until(lambda: " ready " in self.log or self.process.poll() is not None, 20, lambda: self.log)
        assert self.process.poll() is None, self.log

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def end(self, seconds: float = 30.0) -> int:
        """Wait for its end; returns the exit code."""
        return self.process.wait(seconds)


class Terminal:
    """A command on a terminal of its own: it sees colours and a person who types."""

    def __init__(self, program: Program, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
            env=program.environment(TERM="xterm", COLUMNS="150"), start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.text = ""

    def read_until(self, words: str) -> None:
        """Read until `words` have been shown."""
        while words not in self.text:
            assert self._read(), f"ended without {words!r}: {self.text}"

    def _read(self) -> bool:
        try:
            data = os.read(self._ours, 65_536)
        except OSError:  # how Linux says that nobody has the other end any more
            data = b""
        self.text += data.decode(errors="replace")
        return bool(data)

    def type(self, text: str) -> None:
        """Type."""
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl+C."""
        self._process.send_signal(signal.SIGINT)

    def interrupt_question(self) -> int:
        """Press Ctrl+C at a question until the command ends, as a person does; returns the exit code.

        CPython's input() misses a signal that comes after its prompt was written and before it reads.
        """
        self.interrupt()
        while True:
            if not select.select([self._ours], [], [], 2.0)[0]:
                self.interrupt()
            elif not self._read():
                return self.end()

    def end(self) -> int:
        """Read all that is left; returns the exit code."""
        while self._read():
            pass
        os.close(self._ours)
        return self._process.wait(60)
