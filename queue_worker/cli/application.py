"""Loading the user's app `module:name`; every error is one line that names the file."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from queue_worker.errors import ConfigError, QueueWorkerError
from queue_worker.processor import App


def load_app(spec: str | None) -> App:
    """Return the app that `spec` names as `module:name`; without one an app of its own that has no processors.

    The working directory comes first on `sys.path`. Raises ConfigError.
    """
    if spec is None:
        return App()
    name, _, attribute = spec.partition(":")
    if os.getcwd() not in sys.path[:1]:
        sys.path.insert(0, os.getcwd())
    module = _import(name)
    found = getattr(module, attribute, None)
    if isinstance(found, App):
        return found
    file = _shown(getattr(module, "__file__", None) or name)
    apps = ", ".join(f"{name}:{one}" for one, value in vars(module).items() if isinstance(value, App))
    hint = f"did you mean {apps}?" if apps else "make one with app = queue_worker.App()"
    if found is None:
        raise ConfigError(f"{file} has no {attribute!r}; {hint}")
    raise ConfigError(f"{attribute!r} in {file} is a {type(found).__name__}, not a queue_worker.App; {hint}")


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except SyntaxError as error:
        raise ConfigError(f"{_shown(error.filename or name)}, line {error.lineno}: {error.msg}") from error
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"app {name!r}: {error.msg}; looked in {os.getcwd()} and the Python path") from None
        raise ConfigError(f"{_where(error, name)}: {error.msg}") from error
    except QueueWorkerError as error:
        raise ConfigError(f"{_where(error, name)}: {error}") from error
    # BaseException: a module that calls sys.exit() when imported must not look like a worker that ended well.
    except BaseException as error:
        raise ConfigError(f"{_where(error, name)}: {type(error).__name__}: {error}") from error


def _where(error: BaseException, name: str) -> str:
    """Return the file and line of the user's code that an error came from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    ours = str(Path(__file__).parents[1]) + os.sep
    own = [frame for frame in frames if "site-packages" not in frame.filename and not frame.filename.startswith(ours)]
    inside = [frame for frame in own if frame.filename.startswith(os.getcwd() + os.sep)] or own
    inside = [frame for frame in inside if f"{os.sep}importlib{os.sep}" not in frame.filename]
    return f"{_shown(inside[-1].filename)}, line {inside[-1].lineno}" if inside else f"app {name!r}"


def _shown(file: str) -> str:
    """Return a path relative to the working directory where it lies inside."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
