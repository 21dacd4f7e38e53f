"""The reports processor when something is wrong: what is rejected, what is retried, and that nothing half leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from queue_worker.errors import CallRefused, ConfigError, InvalidPayload, LeaseLost, Reject, Retry
from queue_worker.processors.reports import ReportsConfig, make_processor
from queue_worker.storage import LocalStorage
from tests.processors.report_context import Desk, published

pytest_plugins = ["report_fixtures"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def storage(folder: Path) -> LocalStorage:
    return LocalStorage(folder)


def test_an_unknown_report_is_rejected_with_the_known_ones(
    reports_desk: Desk, storage: LocalStorage, folder: Path
) -> None:
    config = ReportsConfig({"stock": "public.stock", "sales": "public.sales"})
    error = reports_desk.run(make_processor(config, storage), reports_desk.send({"report": "profit"}))
    assert isinstance(error, Reject)
    assert error.reason == "report 'profit' is not in QUEUE_WORKER_REPORTS_ALLOWED; known: sales, stock"
    assert not folder.exists()


def test_a_missing_function_is_rejected_with_the_fix(reports_desk: Desk, storage: LocalStorage) -> None:
    error = reports_desk.make(storage, "csv")
    assert isinstance(error, Reject)
    assert "cannot run public.sales(params jsonb)" in error.reason
    assert "QUEUE_WORKER_REPORTS_ALLOWED" in error.reason
    assert "\n" not in error.reason


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("select 1 / (params->>'zero')::int", "22012"),
        ("select (params->>'word')::int", "22P02"),
        ("select * from public.no_such_table", "42P01"),
        ("select public.no_such_function()", "cannot run"),
    ],
)
def test_an_error_that_would_come_again_is_rejected(
    reports_desk: Desk, storage: LocalStorage, body: str, text: str
) -> None:
    reports_desk.query("set check_function_bodies = off")
    reports_desk.function("n int", body)
    error = reports_desk.make(storage, "csv", params={"zero": 0, "word": "many"})
    assert isinstance(error, Reject)
    assert text in error.reason


def test_the_statement_timeout_is_retried(reports_desk: Desk, storage: LocalStorage) -> None:
    (row,) = reports_desk.query(
        "select format('alter database %I set statement_timeout = 50', current_database()) as q"
    )
    reports_desk.query(row["q"])
    reports_desk.function("n text", "select pg_sleep(30)::text")
    error = reports_desk.make(storage, "csv")
    assert isinstance(error, Retry)
    assert error.delay is None
    assert "statement timeout" in error.reason


def test_any_other_error_of_sql_is_left_to_the_retry_policy(reports_desk: Desk, storage: LocalStorage) -> None:
    reports_desk.query(
        "create function public.sales(params jsonb) returns int language plpgsql as"
        " $$ begin raise exception 'the books are not closed yet'; end $$"
    )
    error = reports_desk.make(storage, "csv")
    assert isinstance(error, CallRefused)
    assert "books" in str(error)


def test_too_many_rows_are_rejected_before_anything_is_published(
    reports_desk: Desk, storage: LocalStorage, folder: Path
) -> None:
    reports_desk.function("n int", "select g from generate_series(1, (params->>'n')::int) g")
    processor = make_processor(ReportsConfig({"sales": "public.sales"}, max_rows=10, max_pdf_rows=5), storage)

    def run(n: int, *formats: str) -> BaseException | None:
        return reports_desk.run(
            processor, reports_desk.send({"report": "sales", "formats": formats, "params": {"n": n}})
        )

    assert run(10, "csv") is None
    error = run(11, "csv")
    assert isinstance(error, Reject)
    assert "more than 10 rows" in error.reason
    before = published(folder)
    error = run(6, "csv", "pdf")
    assert isinstance(error, Reject)
    assert "a pdf takes 5 at most" in error.reason
    assert published(folder) == before


def test_a_file_that_is_too_large_is_rejected(reports_desk: Desk, storage: LocalStorage, folder: Path) -> None:
    reports_desk.function("t text", "select repeat('x', 2000)")
    processor = make_processor(ReportsConfig({"sales": "public.sales"}, max_bytes=1000), storage)
    error = reports_desk.run(processor, reports_desk.send({"report": "sales"}))
    assert isinstance(error, Reject)
    assert "1000 are allowed" in error.reason
    assert not folder.exists()


def test_a_run_that_lost_its_message_publishes_nothing(reports_desk: Desk, storage: LocalStorage, folder: Path) -> None:
    reports_desk.function("n int", "select 1")
    reports_desk.cancelled = True
    assert isinstance(reports_desk.make(storage, "csv", email={"to": "ann@example.com"}), LeaseLost)
    assert not folder.exists()
    assert reports_desk.mails() == []


class Breaking:
    """A storage that fails on the second file."""

    def __init__(self, storage: LocalStorage) -> None:
        self.storage = storage
        self.calls = 0

    def put(self, key: str, source: Path, content_type: str) -> Any:
        self.calls += 1
        if self.calls == 2:
            raise OSError("the disk is full")
        return self.storage.put(key, source, content_type)


def test_a_storage_that_fails_is_retried_and_no_mail_is_sent_before_all_files_are_there(
    reports_desk: Desk, storage: LocalStorage, folder: Path
) -> None:
    reports_desk.function("n int", "select 1")
    breaking = Breaking(storage)
    assert isinstance(reports_desk.make(breaking, "csv", "html", email={"to": "ann@example.com"}), OSError)
    assert reports_desk.mails() == []
    assert reports_desk.make(breaking, "csv", "html", email={"to": "ann@example.com"}) is None
    assert published(folder) == ["out/sales.csv", "out/sales.html"]
    assert len(reports_desk.mails()) == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"key": "../../etc/passwd"}, "key"),
        ({"key": "/etc/passwd"}, "key"),
        ({"key": "a/../b"}, "key"),
        ({"key": ".tmp/a"}, "key"),
        ({"key": "a b"}, "key"),
        ({"key": "a\n"}, "key"),
        ({"key": "a/"}, "key"),
        ({"key": "x" * 501}, "key"),
        ({"formats": ["docx"]}, "formats"),
        ({"formats": []}, "formats"),
        ({"format": "csv", "formats": ["csv"]}, "not both"),
        ({"params": [1]}, "params"),
        ({"params": "x"}, "params"),
        ({"title": "a\r\nBcc: x"}, "title"),
        ({"title": "  "}, "title"),
        ({"template": "../secret.html"}, "template"),
        ({"function": "pg_sleep"}, "function"),
        ({"email": {"to": []}}, "email.to"),
        ({"email": {"to": "a@b.c", "from": "x"}}, "email.from"),
        ({"report": 5}, "report"),
    ],
)
def test_a_hostile_payload_is_refused_by_the_field(storage: LocalStorage, change: dict[str, Any], field: str) -> None:
    processor = make_processor(ReportsConfig({"sales": "public.sales"}), storage)
    with pytest.raises(InvalidPayload, match=field):
        processor.parse(json.dumps({"report": "sales", **change}))


def test_a_report_name_is_never_sql(reports_desk: Desk, storage: LocalStorage) -> None:
    processor = make_processor(ReportsConfig({"sales": "public.sales"}), storage)
    for name in ("public.sales", "sales; drop table x", "../sales", "Sales", "", "sales\x7f", "ｓales"):
        assert isinstance(reports_desk.run(processor, reports_desk.send({"report": name})), Reject)


@pytest.mark.parametrize(
    "function",
    [
        "public.sales(jsonb); drop table public.t; --",
        'public."sales',
        "public.sales(jsonb",
        "",
        "no.such",
        "public.agg",
    ],
)
def test_run_report_calls_nothing_but_a_function(reports_desk: Desk, function: str) -> None:
    reports_desk.query("create table public.t (n int)")
    reports_desk.query("create aggregate public.agg(jsonb) (sfunc = jsonb_concat, stype = jsonb)")
    with pytest.raises(CallRefused) as refused:
        reports_desk.context.call("queue_worker.run_report", {"function": function, "params": {}, "max_rows": 1})
    assert refused.value.sqlstate.startswith("42")
    assert reports_desk.query("select count(*) as n from public.t") == [{"n": 0}]


def test_run_report_needs_the_right_to_run_the_function(reports_desk: Desk) -> None:
    reports_desk.function("n int", "select 1")
    reports_desk.query("revoke execute on function public.sales from public")
    reports_desk.query(
        "do $$ begin create role report_guest; exception when duplicate_object or unique_violation then null; end $$"
    )
    reports_desk.query(
        "grant usage on schema queue_worker to report_guest;"
        "grant execute on function queue_worker.run_report to report_guest; set role report_guest"
    )
    with pytest.raises(Exception, match="permission denied for function sales"):
        reports_desk.query("select * from queue_worker.run_report('public.sales', '{}')")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"reports": {"sales": "sales"}}, "name=schema.function"),
        ({"reports": {"sales": "public.sales()"}}, "name=schema.function"),
        ({"reports": {"sales": "public.sales; drop table x"}}, "name=schema.function"),
        ({"reports": {"../x": "public.sales"}}, "name=schema.function"),
        ({"reports": {"Sales": "public.sales"}}, "name=schema.function"),
        ({"templates_dir": Path("no-such-folder")}, "no-such-folder is not a folder"),
        ({"timezone": "Mars/Olympus"}, "Mars/Olympus"),
        ({"timezone": "../etc"}, "time zone"),
        ({"csv_delimiter": "::"}, "delimiter"),
    ],
)
def test_a_wrong_configuration_is_refused_at_the_start(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text.replace("(", r"\(")):
        ReportsConfig(**settings)
