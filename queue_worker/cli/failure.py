"""What went wrong as an exit code and one line; a user's mistake never ends in a traceback."""

from __future__ import annotations

import sys
import traceback

import typer

from queue_worker.errors import CallRefused, QueueWorkerError, TransportUnavailable
from queue_worker.log import escape, redact

FAILED, MISTAKE, CONFIGURATION, INTERRUPTED = 1, 2, 78, 130

# The schema is not there: undefined function, undefined schema, and PostgREST's word for both.
_NO_SCHEMA = ("42883", "3F000", "PGRST202")
_DENIED = "42501"
# Data exceptions, broken constraints, and what this version does not do.
_REFUSED = ("22", "23", "0A")


def say(line: str) -> None:
    """Print one line for a person to standard error, with secrets and control characters taken out."""
    print(f"queue-worker: {escape(redact(line))}", file=sys.stderr)


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code for `error`, and the line to print (empty: none)."""
    match error:
        case KeyboardInterrupt() | typer.Abort():
            found = INTERRUPTED, ""
        case BrokenPipeError():
            found = FAILED, ""
        case typer.TyperException():
            found = error.exit_code, _usage(error)
        case CallRefused():
            found = _refused(error)
        case TransportUnavailable() if error.refused:
            found = CONFIGURATION, f"the database refuses this login: {error}; check DATABASE_URL"
        case TransportUnavailable():
            found = FAILED, f"the database cannot be reached: {error}"
        case QueueWorkerError():
            found = error.exit_code, str(error)
        case UnicodeError():
            found = MISTAKE, "the text is not valid UTF-8"
        case OSError():
            found = FAILED, f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        case _:
            found = FAILED, f"unexpected {type(error).__name__}: {error} (-v shows where)"
    return found


def _usage(error: typer.TyperException) -> str:
    """Return what is wrong with the words of the command line, and where its help is."""
    context, text = getattr(error, "ctx", None), error.format_message()
    if context is None or text.startswith("Usage: "):
        return text
    # What pydantic says before the words of a validator of ours.
    return f"{text.replace('Value error, ', '').rstrip('.')}; see {context.command_path} --help"


def no_function(error: CallRefused) -> bool:
    """Whether the database has no such function: its schema is older than this program, or not there."""
    return error.sqlstate in _NO_SCHEMA


def _refused(error: CallRefused) -> tuple[int, str]:
    if no_function(error):
        return CONFIGURATION, f"the database lacks a function of this version ({error}): run `queue-worker migrate`"
    if error.sqlstate == _DENIED:
        return CONFIGURATION, f"the database role may not do this: {error}"
    return (MISTAKE if error.sqlstate.startswith(_REFUSED) else FAILED), str(error)


def expected(error: BaseException) -> bool:
    """Whether `error` is no bug of ours, so that its line says all."""
    return isinstance(error, (QueueWorkerError, typer.TyperException, typer.Abort, KeyboardInterrupt, OSError))


def show_traceback(error: BaseException) -> None:
    """Print the traceback of `error`, or of what caused it, without secrets and each line harmless to a terminal."""
    for line in redact("".join(traceback.format_exception(error.__cause__ or error))).rstrip("\n").split("\n"):
        print(escape(line), file=sys.stderr)
