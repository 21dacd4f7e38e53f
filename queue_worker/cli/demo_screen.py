"""What the demo shows: its progress while it runs, and the summary, for people or as JSON."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from queue_worker import embedded
from queue_worker._version import __version__
from queue_worker.cli.output import first_line, print_json, print_table
from queue_worker.demo_data import FAILS_TWICE
from queue_worker.demo_results import Results

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Screen:
    """Prints notes as they come; a bar too, on a terminal. With `as_json` standard output gets the summary alone."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._out = sys.stderr if as_json else sys.stdout
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._shown = ""
        self._begin = time.monotonic()

    def __enter__(self) -> Self:
        if self._out.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            console = Console(file=self._out, highlight=False)
            self._bar = Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, text: str) -> None:
        """Print one line."""
        line = f"{time.monotonic() - self._begin:5.1f} s  {text}"
        if self._bar is not None:
            self._bar.console.print(line, markup=False, soft_wrap=True)
        else:
            print(line, file=self._out, flush=True)

    def progress(self, done: int, total: int, text: str) -> None:
        """Show how far the messages are."""
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(text, total=total)
            self._bar.update(self._task, completed=done, description=text)
        elif text != self._shown:
            self.note(text)
        self._shown = text

    def show(self, results: Results) -> None:
        """Print the summary."""
        if self._as_json:
            print_json(as_json(results))
        else:
            _print(results)

    def keep(self, server: embedded.EmbeddedServer) -> None:
        """Say how to reach the database that stays up."""
        lines = (
            "The database stays up until Ctrl+C:",
            f"  {embedded.psql_command(server)}",
            f"  {server.tcp_url}",
        )
        print("\n".join(lines), file=self._out, flush=True)


def as_json(results: Results) -> dict[str, Any]:
    """Return the summary as one JSON object."""
    return {
        "ok": results.ok,
        "version": __version__,
        "seconds": round(results.seconds, 2),
        "settings": dict(results.settings),
        "formats": list(results.formats),
        "queues": results.queues,
        "payments": [{**row, "id": str(row["id"])} for row in results.payments],
        "charges": results.charges,
        "ledger": results.ledger,
        "dead_letters": results.dead,
        "mails": results.mails,
        "files": results.files,
        "checks": [{"name": one.name, "ok": one.ok, "expected": one.expected, "found": one.found}
                   for one in results.checks],
        "look": {"commands": _commands(results), "sql": list(_SQL)},
    }  # fmt: skip


_SQL = (
    "select * from queue_worker.queues;",
    "select * from queue_worker.dead_letters;",
    "select * from queue_worker.failures order by failure_id;",
    "select * from queue_worker.archived('email');",
    "select * from public.payments;",
)


def _shown(path: Path | str) -> str:
    """Return a path as short as it can be typed here."""
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else str(path)


def _inside(path: str, results: Results) -> str:
    return str(Path(path).relative_to(results.folder))


def _commands(results: Results) -> list[str]:
    option = f"--env-file {shlex.quote(_shown(results.folder / 'demo.env'))}"
    return [
        f"queue-worker status {option}",
        f"queue-worker dead list payments {option}",
        f"queue-worker show payments {results.payment(FAILS_TWICE).get('msg_id')} {option}",
    ]


def _print(results: Results) -> None:
    figures = ("queue", "done", "retried", "dead", "left")
    print()
    print_table(figures, [[row[name] for name in figures] for row in results.queues])
    print()
    print_table(
        ("payment", "amount", "", "account", "status", "failures"),
        [
            [row["description"], f"{row['amount_minor'] / 100:.2f}", *(row[name] for name in _PAYMENT)]
            for row in results.payments
        ],
    )
    print(_charged(results))
    print()
    print_table(
        ("mail to", "subject", "attached", "file"),
        [[one["to"], one["subject"], _attached(one), _inside(one["file"], results)] for one in results.mails],
    )
    print()
    print_table(
        ("dead letter", "queue", "attempts", "reason", "error"),
        [
            [row["dead_id"], row["queue"], row["attempts"], row["reason"], first_line(row["error"], 70)]
            for row in results.dead
        ],
    )
    print()
    print_table(("report", "bytes"), [[_inside(one["path"], results), one["bytes"]] for one in results.files])
    print(f"Files are under {_shown(results.folder)}; worker.log there has the worker's lines.")
    _print_end(results)


_PAYMENT = ("currency", "account", "status", "failures")


def _attached(mail: Mapping[str, Any]) -> str:
    return ", ".join(f"{Path(part['name']).suffix[1:]} {part['bytes']} bytes" for part in mail["attachments"])


def _charged(results: Results) -> str:
    totals: dict[str, int] = {}
    charged = [row for row in results.charges if row["status"] == "succeeded"]
    for row in charged:
        totals[row["currency"]] = totals.get(row["currency"], 0) + row["amount_minor"]
    sums = ", ".join(f"{minor / 100:.2f} {currency}" for currency, minor in sorted(totals.items()))
    return f"The sandbox charged {len(charged)} payments, {sums}."


def _print_end(results: Results) -> None:
    print()
    if "pdf" not in results.formats:
        print("The report is html instead of pdf: pip install 'queue-worker[pdf]' brings that.")
    chosen = ("QUEUE_WORKER_MAX_ATTEMPTS", "QUEUE_WORKER_RETRY", "QUEUE_WORKER_CYCLE_SECONDS")
    print("Settings:", " ".join(f"{name}={results.settings[name]}" for name in chosen), "(the rest is in demo.env)")
    print("Look around:", *(f"  {line}" for line in _commands(results)), sep="\n")
    print("In SQL, with `queue-worker demo --keep`:", *(f"  {line}" for line in _SQL), sep="\n")
    print()
    bad = [check for check in results.checks if not check.ok]
    for check in bad:
        print(f"WRONG  {check.name}: expected {check.expected!r}, found {check.found!r}")
    good = len(results.checks) - len(bad)
    print(f"{good} of {len(results.checks)} checks hold; all of it took {results.seconds:.1f} s")
