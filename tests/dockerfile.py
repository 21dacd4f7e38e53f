"""A Dockerfile, its instructions carried out without Docker, and its command run as Docker would run it.

Linux and root are needed. Each stage is an overlay over the root folder of this machine, in a mount namespace:
RUN lines write there for real, and nothing is seen outside. What stands behind FROM is this machine and this Python,
so neither the base image nor Docker's own work (layers, networks, cgroups) is tried.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

_NAMESPACES = (("mount", "mnt"), ("pid", "pid"))


class Instruction(NamedTuple):
    """One instruction: its word, and all that follows on one line."""

    word: str
    rest: str


def stages(text: str) -> list[list[Instruction]]:
    """The instructions of a Dockerfile, a list for each FROM; comments are left out."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found: list[list[Instruction]] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        found[-1].append(Instruction(word, rest.strip()))
    return found


def value(stage: Sequence[Instruction], word: str) -> str:
    """What stands behind the one instruction `word` of a stage."""
    [found] = [one.rest for one in stage if one.word == word]
    return found


def variables(stage: Sequence[Instruction], word: str = "ENV") -> dict[str, str]:
    """The variables that the ENV (or LABEL) lines of a stage set."""
    pairs = [part.partition("=") for one in stage if one.word == word for part in shlex.split(one.rest)]
    return {name: text for name, _, text in pairs}


def process(pid: int) -> int:
    """The id, as seen from outside, of the container's process that the command of `Image.start` runs under `pid`."""
    [found] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(found)


def command(text: str) -> list[str]:
    """The words of a command in exec form; `text` may have options before it, as behind HEALTHCHECK."""
    words = json.loads(text[text.index("[") :])
    assert all(isinstance(word, str) for word in words)
    return words


class Image:
    """The image of the Dockerfile in `context`; `build` makes it under `folder`."""

    def __init__(self, context: Path, folder: Path) -> None:
        self._context = context
        self._folder = folder
        self._stages = stages((context / "Dockerfile").read_text())
        self._names = [one[0].rest.partition(" AS ")[2] for one in self._stages]
        self.last = self._stages[-1]
        self.data = folder / "data"
        """What is mounted at /data, as a named volume: with the owner that the folder has in the image."""

    def build(self) -> None:
        """Carry out every instruction that writes files."""
        for number, stage in enumerate(self._stages):
            upper, _, root = self._places(number)
            for place in (upper, self._folder / f"work{number}", root):
                place.mkdir(parents=True)
            self._opened(upper)
            where = "/"
            for word, rest in stage:
                if word == "WORKDIR":
                    where = rest
                    (upper / where.lstrip("/")).mkdir(parents=True, exist_ok=True)
                elif word == "COPY":
                    self._copy(upper, where, rest)
                elif word == "RUN":
                    line = re.sub(r"^--mount=type=cache,\S+ +", "", rest)
                    self._in_root(number, ["sh", "-c", f"cd {where} && {line}"])
        in_image = self._places(len(self._stages) - 1)[0] / "data"
        self.data.mkdir()
        os.chown(self.data, in_image.stat().st_uid, in_image.stat().st_gid)

    def path(self, name: str) -> Path:
        """A file of the finished image, from outside."""
        return self._places(len(self._stages) - 1)[0] / name.lstrip("/")

    def start(self, words: Sequence[str], **environment: str) -> list[str]:
        """The command that runs `words` as a container's process 1: user of the image, no rights, all read-only but
        /tmp and /data. It ends as that process does, which is its only child; see `process`."""
        number = len(self._stages) - 1
        upper, work, root = self._places(number)
        script = [
            f"mount -t overlay overlay -o lowerdir=/,upperdir={upper},workdir={work} {root}",
            f"mount -o remount,bind,ro {root}",
            f"mount --rbind /dev {root}/dev",
            f"mount -t proc proc {root}/proc",
            f"mount --bind {self.data} {root}/data",
            f"mount -t tmpfs tmpfs {root}/tmp",
            shlex.join(["exec", "chroot", str(root), *self._as_user(words, environment)]),
        ]
        return ["unshare", "--mount", "--pid", "--fork", "sh", "-ec", "\n".join(script)]

    def inside(self, process: int, words: Sequence[str], **environment: str) -> list[str]:
        """The command that runs `words` beside the container's process, as `docker exec` and a health check do."""
        place = [*(f"--{one}=/proc/{process}/ns/{name}" for one, name in _NAMESPACES), f"--root=/proc/{process}/root"]
        return ["nsenter", *place, *self._as_user(words, environment)]

    # ------------------------------------------------------------------------------------------------- the parts

    def _places(self, number: int) -> tuple[Path, Path, Path]:
        """What a stage has written, the overlay's own folder, and where its root is mounted."""
        return tuple(self._folder / f"{name}{number}" for name in ("upper", "work", "root"))  # type: ignore[return-value]

    def _opened(self, upper: Path) -> None:
        """Let the image's user reach this machine's Python, which may lie in a closed home folder."""
        for parent in reversed(Path(sys.base_prefix).parents[:-1]):
            (upper / str(parent).lstrip("/")).mkdir(exist_ok=True)
            (upper / str(parent).lstrip("/")).chmod(0o755)

    def _copy(self, upper: Path, where: str, rest: str) -> None:
        *sources, target = rest.split()
        origin, ignored = self._context, shutil.ignore_patterns("__pycache__")  # by .dockerignore
        if sources[0].startswith("--from="):
            origin, ignored = self._places(self._names.index(sources.pop(0).removeprefix("--from=")))[0], None
        for source in sources:
            found = origin / source.lstrip("/")
            place = upper / os.path.join(where, target).lstrip("/")
            if found.is_dir():
                shutil.copytree(found, place, symlinks=True, ignore=ignored)
            else:
                shutil.copy(found, place / found.name)

    def _in_root(self, number: int, words: Sequence[str]) -> None:
        upper, work, root = self._places(number)
        path = f"{sys.base_prefix}/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        script = [
            f"mount -t overlay overlay -o lowerdir=/,upperdir={upper},workdir={work} {root}",
            # Mounts, which an overlay of the root folder does not take along.
            *(f"mount --rbind /{name} {root}/{name}" for name in ("proc", "dev")),
            shlex.join(["exec", "chroot", str(root), "env", f"PATH={path}", *words]),
        ]
        kept = {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", "\n".join(script)], env=kept, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def _as_user(self, words: Sequence[str], environment: dict[str, str]) -> list[str]:
        user, _, group = value(self.last, "USER").partition(":")
        settings = variables(self.last) | environment
        settings["PATH"] = settings["PATH"].replace("$PATH", "/usr/local/bin:/usr/bin:/bin")
        drop = ["--reuid", user, "--regid", group, "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
        where = ["env", "--ignore-environment", f"--chdir={value(self.last, 'WORKDIR')}"]
        return ["setpriv", *drop, *where, *(f"{name}={text}" for name, text in settings.items()), *words]
