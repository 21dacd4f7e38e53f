"""The root of the commands, the options that every command takes, and the settings made of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from queue_worker._version import __version__
from queue_worker.cli.failure import say
from queue_worker.config import Settings, load_settings
from queue_worker.log import configure, register_secret


@dataclass
class Common:
    """The options of the running command that all commands take, given before its name or after it."""

    env_file: Path | None = None
    embedded: bool = False
    verbose: bool = False


common = Common()

EnvFile = Annotated[
    Path | None, typer.Option("--env-file", metavar="FILE", help="Read settings from FILE instead of .env.")
]
Embedded = Annotated[bool, typer.Option("--embedded", help="Use the embedded Postgres under the state folder.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log more, and show where unexpected errors arose.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
QueueName = Annotated[str, typer.Argument(metavar="QUEUE", help="Name of the queue.", show_default=False)]

_SETTINGS = {"help_option_names": ["-h", "--help"]}
_FORMS = {"env_file": EnvFile, "embedded": Embedded, "verbose": Verbose}

root = typer.Typer(
    help="Consumes pgmq queues on Supabase or any Postgres: email, reports, payments, and your own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=_SETTINGS,
)


def group(name: str, text: str) -> typer.Typer:
    """Return a new group of commands under the root; `text` is its help."""
    made = typer.Typer(
        help=text,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=_SETTINGS,
    )
    root.add_typer(made, name=name)
    return made


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"queue-worker {__version__}")
        raise typer.Exit


@root.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    env_file: EnvFile = None,
    embedded: Embedded = False,
    verbose: Verbose = False,
) -> None:
    common.env_file, common.embedded, common.verbose = env_file, embedded, verbose


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Register the decorated function as a command that takes the common options too."""

    def register(function: Callable[..., int | None]) -> Callable[..., int | None]:
        @functools.wraps(function)
        def run(**options: Any) -> int | None:
            given = {option: options.pop(option) for option in _FORMS}
            common.env_file = given["env_file"] or common.env_file
            common.embedded = given["embedded"] or common.embedded
            common.verbose = given["verbose"] or common.verbose
            return function(**options)

        own = inspect.signature(function, eval_str=True)
        extra = [
            inspect.Parameter(
                option, inspect.Parameter.KEYWORD_ONLY, default=False if option != "env_file" else None, annotation=form
            )
            for option, form in _FORMS.items()
        ]
        run.__signature__ = own.replace(parameters=[*own.parameters.values(), *extra])  # type: ignore[attr-defined]
        app.command(name, context_settings=_SETTINGS)(run)
        return function

    return register


def settings(*, warn: bool = False, **overrides: Any) -> Settings:
    """Return the settings of this command; `overrides` are those of its own options, None where not given.

    `warn`: print what is odd in them. Raises ConfigError.
    """
    configure("DEBUG" if common.verbose else "WARNING")
    found = load_settings({"embedded": common.embedded or None, **overrides}, common.env_file)
    for secret in found.secret_values():
        register_secret(secret)
    if warn or common.verbose:
        for line in found.warnings:
            say(f"warning: {line}")
    return found
