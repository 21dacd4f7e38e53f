"""An example as its page tells people to run it, and what it left."""

from __future__ import annotations

import re
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import NamedTuple

from tests.pages import ROOT, Block, Reader


class _Typist(Reader):
    """A reader who keeps what the commands print."""

    printed: tuple[str, ...] = ()

    def _run(self, block: Block, where: str) -> str:
        output = super()._run(block, where)
        self.printed = (*self.printed, output)
        return output


class Shown(NamedTuple):
    """What the commands of the page printed, in order, and the folder that the example wrote to."""

    printed: tuple[str, ...]
    folder: Path

    def mails(self) -> list[EmailMessage]:
        """The mails that the mail server of the example took."""
        parsed = [message_from_bytes(file.read_bytes(), policy=policy.default) for file in self.folder.glob("mails/*")]
        return [mail for mail in parsed if isinstance(mail, EmailMessage)]


def read(name: str, dsn: str, tmp_path: Path) -> Shown:
    """Run all blocks of the page of `examples/name` on the database `dsn`; its first command is the example itself."""
    folder = tmp_path / "shown"
    reader = _Typist(tmp_path, dsn, EXAMPLE_DATABASE_URL=dsn, EXAMPLE_FOLDER=str(folder))
    # The page is read in the repository, and what it writes there goes to a folder of the test.
    (reader.folder / "examples").symlink_to(ROOT / "examples")
    assert reader.read(ROOT / "examples" / name / "README.md") > 0
    assert reader.shown > 0, "the page shows nothing of what its commands print"
    return Shown(reader.printed, folder)


def all_checks_hold(output: str) -> bool:
    """Whether the last line of an example's output says that all its checks hold."""
    last = output.splitlines()[-1]
    return re.fullmatch(r"([1-9]\d*) of \1 checks hold", last) is not None
