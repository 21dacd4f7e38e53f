"""The built-in processor `reports`: runs a named SQL function and publishes its rows as csv, xlsx, html or pdf.

A message names a report, never SQL, a template or a path outside the storage: the registry maps the name to a function
`schema.name(params jsonb)`. All files are rendered before the first is published, and each is published whole or not
at all; a rerun replaces them. The mail that delivers them carries a key, by which the mail processor drops a repeat.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from queue_worker.errors import ConfigError, LeaseLost, Reject
from queue_worker.processor import Job, Processor
from queue_worker.processors.report_render import Format, Rendered, render
from queue_worker.processors.report_rows import Query, fetch

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_FUNCTION = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}\.[A-Za-z_][A-Za-z0-9_$]{0,62}")
# 500 leaves room for the ending within the 512 of a storage key.
_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,499}")


class StoredFile(Protocol):
    """What a storage says of a published file."""

    @property
    def key(self) -> str: ...


class FileStore(Protocol):
    """What this processor needs of `queue_worker.storage.Storage`."""

    def put(self, key: str, source: Path, content_type: str) -> StoredFile: ...


@dataclass(frozen=True)
class ReportsConfig:
    """What may be run and how large it may get.

    `reports`: name -> `schema.function`. `templates_dir`: folder with `<report>.html` or `default.html`. `max_rows`,
    `max_pdf_rows`: rows, more are refused; `max_bytes`: of one file. `timezone`: IANA name; times with a zone are
    shown in it. `csv_delimiter`: one character; Excel in many countries of Europe wants `;`. `fonts`: font files for
    pdf, as `path` or `path#face`, preferred to those found. Raises ConfigError.
    """

    reports: Mapping[str, str] = field(default_factory=dict)
    templates_dir: Path | None = None
    max_rows: int = 100_000
    max_pdf_rows: int = 3_000
    max_bytes: int = 50_000_000
    timezone: str = "UTC"
    csv_delimiter: str = ","
    fonts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, function in self.reports.items():
            if not _NAME.fullmatch(name) or not _FUNCTION.fullmatch(function):
                raise ConfigError(
                    f"QUEUE_WORKER_REPORTS_ALLOWED: {f'{name}={function}'!r} is not name=schema.function, with the name"
                    " of a-z 0-9 _ - and the function without arguments"
                )
        if self.templates_dir is not None and not self.templates_dir.is_dir():
            raise ConfigError(f"QUEUE_WORKER_REPORTS_TEMPLATES: {self.templates_dir} is not a folder")
        try:
            zoneinfo.ZoneInfo(self.timezone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError):
            raise ConfigError(f"reports: {self.timezone!r} is not a time zone such as Europe/Berlin") from None
        if len(self.csv_delimiter) != 1 or self.csv_delimiter not in ",;|\t":
            raise ConfigError(f"reports: {self.csv_delimiter!r} is not a csv delimiter; use one of , ; | or a tab")

    def options_for(self, name: Format) -> dict[str, Any]:
        """Return the options of one format's renderer."""
        options: dict[Format, dict[str, Any]] = {
            "csv": {"delimiter": self.csv_delimiter},
            "html": {"folder": self.templates_dir},
            "pdf": {"max_rows": self.max_pdf_rows, "fonts": self.fonts},
        }
        return options.get(name, {})


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Addresses = Annotated[list[str], BeforeValidator(_listed)]


class ReportEmail(BaseModel):
    """The mail that delivers the files; the processor of the queue `email` checks the addresses."""

    model_config = ConfigDict(extra="forbid")

    to: Addresses = Field(min_length=1, max_length=1000)
    cc: Addresses = Field(default_factory=list, max_length=1000)
    subject: str | None = Field(default=None, max_length=500)
    text: str | None = Field(default=None, validation_alias=AliasChoices("text", "body"))


class ReportRequest(BaseModel):
    """The payload of the queue `reports`; README lists the fields."""

    model_config = ConfigDict(extra="forbid")

    report: str
    params: dict[str, Any] = Field(default_factory=dict)
    formats: Annotated[list[Format], BeforeValidator(_listed)] = Field(
        default=["csv"], min_length=1, max_length=4, validation_alias=AliasChoices("formats", "format")
    )
    title: str | None = Field(default=None, max_length=200)
    key: str | None = None
    email: ReportEmail | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_of_both(cls, data: Any) -> Any:
        if isinstance(data, dict) and "format" in data and "formats" in data:
            raise ValueError("give format or formats, not both")
        return data

    @field_validator("formats")
    @classmethod
    def _distinct(cls, value: list[Format]) -> list[Format]:
        return list(dict.fromkeys(value))

    @field_validator("title")
    @classmethod
    def _title(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", value)):
            raise ValueError("must be one line of text without control characters")
        return value and value.strip()

    @field_validator("key")
    @classmethod
    def _stem(cls, value: str | None) -> str | None:
        if value is not None and (not _STEM.fullmatch(value) or any(not part.strip(".") for part in value.split("/"))):
            raise ValueError(
                "must be a path without its ending: at most 500 of A-Z a-z 0-9 . _ / -, beginning with a letter or a"
                " digit, without empty parts or parts of dots"
            )
        return value


def make_processor(config: ReportsConfig, storage: FileStore) -> Processor:
    """Return the processor of the queue `reports`; `storage` takes the files."""

    def handle(job: Job[ReportRequest]) -> None:
        run(job, config, storage)

    return Processor("reports", handle, ReportRequest, builtin=True)


def run(job: Job[ReportRequest], config: ReportsConfig, storage: FileStore) -> None:
    """Make the files of one message, publish them and send the mail.

    Raises Reject for what would fail again, Retry when the statement timeout struck, LeaseLost when the message went to
    another worker meanwhile, TransportError, and OSError when the storage or the disk fails.
    """
    request = job.payload
    function = config.reports.get(request.report)
    if function is None:
        known = ", ".join(sorted(config.reports)) or "none"
        raise Reject(f"report {request.report[:80]!r} is not in QUEUE_WORKER_REPORTS_ALLOWED; known: {known}")
    title = request.title or request.report
    zone = zoneinfo.ZoneInfo(config.timezone)
    table = fetch(job, Query(request.report, title, function, request.params, config.max_rows, zone))
    stem = request.key or f"{request.report}/{_fingerprint(job)[:16]}"
    with tempfile.TemporaryDirectory(prefix="queue-worker-report-") as folder:
        files = [
            render(table, name, Path(folder), config.max_bytes, config.options_for(name)) for name in request.formats
        ]
        stored = _publish(job, storage, stem, files)
    if request.email is not None:
        job.send("email", _mail(job, request.email, title, stored))
    job.annotate(report=request.report, rows=len(table.rows), files=[file.key for file in stored])


def _fingerprint(job: Job[ReportRequest]) -> str:
    """Return a name of this work that is safe in a path and in a header: the same in every run, 32 letters long."""
    return hashlib.sha256(job.key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _publish(job: Job[ReportRequest], storage: FileStore, stem: str, files: list[Rendered]) -> list[StoredFile]:
    # A run that lost its message must not replace what the next one has published.
    if job.cancelled:
        raise LeaseLost("the message went to another worker before its report was published")
    return [storage.put(f"{stem}.{file.format}", file.path, file.content_type) for file in files]


def _mail(job: Job[ReportRequest], email: ReportEmail, title: str, files: list[StoredFile]) -> dict[str, Any]:
    """Return the payload for the queue `email`; its `key` is the same in every run of this message."""
    # What the recipient sees is the title; a path inside it would be refused.
    name = re.sub(r'[/\\:*?"<>|]', "-", title)[:100]
    mail: dict[str, Any] = {
        "to": email.to,
        "subject": email.subject or title,
        "text": email.text or title,
        "attachments": [{"key": file.key, "filename": name + Path(file.key).suffix} for file in files],
        "key": f"report:{_fingerprint(job)}",
    }
    return mail | ({"cc": email.cc} if email.cc else {})
