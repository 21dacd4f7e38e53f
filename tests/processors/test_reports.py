"""The reports processor on a real database: what runs, what is refused, what is published and mailed."""

from __future__ import annotations

from pathlib import Path

import pytest

from queue_worker import App
from queue_worker.processors.email_payload import EmailPayload
from queue_worker.processors.reports import ReportsConfig, make_processor
from queue_worker.storage import LocalStorage
from tests.helpers import running, wait_until
from tests.processors.report_context import Desk, published, rows_of

pytest_plugins = ["report_fixtures"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def storage(folder: Path) -> LocalStorage:
    return LocalStorage(folder)


def test_the_params_reach_the_function_as_one_object(reports_desk: Desk, storage: LocalStorage) -> None:
    reports_desk.function(
        "city text, year int, tags text", "select params->>'city', (params->>'year')::int, params->>'tags'"
    )
    assert reports_desk.make(storage, "csv", params={"city": "Köln", "year": 2026, "tags": ["a", {"b": 1}]}) is None
    assert rows_of(storage) == [["city", "year", "tags"], ["Köln", "2026", '["a", {"b": 1}]']]
    assert reports_desk.note() == {"report": "sales", "rows": 1, "files": ["out/sales.csv"]}


def test_a_worker_makes_the_report_and_archives_the_message(
    reports_desk: Desk, storage: LocalStorage, dsn: str
) -> None:
    reports_desk.function("name text", "values ('Иванов')")
    app = App(builtins=False)
    app.add(make_processor(ReportsConfig({"sales": "public.sales"}), storage))
    msg_id = reports_desk.send({"report": "sales", "key": "out/sales", "email": {"to": "ann@example.com"}})
    with running(dsn, app):
        wait_until(lambda: reports_desk.query("select msg_id from pgmq.a_reports where msg_id = %s", msg_id), 30)
    assert rows_of(storage) == [["name"], ["Иванов"]]
    assert len(reports_desk.mails()) == 1


def test_columns_keep_the_order_of_sql(reports_desk: Desk, storage: LocalStorage) -> None:
    reports_desk.function("zebra int, apple int, mango int", "values (1, 2, 3)")
    reports_desk.make(storage, "csv")
    assert rows_of(storage) == [["zebra", "apple", "mango"], ["1", "2", "3"]]


def test_rows_keep_the_order_of_sql(reports_desk: Desk, storage: LocalStorage) -> None:
    reports_desk.function("n int", "select g from generate_series(1, 3000) g order by g desc")
    reports_desk.make(storage, "csv")
    assert [row[0] for row in rows_of(storage)[1:]] == [str(n) for n in range(3000, 0, -1)]


def test_no_rows_still_have_their_heading(reports_desk: Desk, storage: LocalStorage) -> None:
    reports_desk.function("name text, n int", "select 'x', 1 where false")
    assert reports_desk.make(storage, "csv", "xlsx", "html", "pdf") is None
    assert rows_of(storage) == [["name", "n"]]


def test_a_function_finds_its_tables_as_in_a_plain_call(reports_desk: Desk, storage: LocalStorage) -> None:
    reports_desk.query("create table public.orders (id int); insert into public.orders values (7)")
    reports_desk.query(
        "create function public.sales(params jsonb) returns table (id int) language plpgsql as"
        " $$ begin return query select o.id from orders o; end $$"
    )
    assert reports_desk.make(storage, "csv") is None
    assert rows_of(storage) == [["id"], ["7"]]


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        ("returns setof public.goods language sql as 'select * from public.goods'", [["id", "label"], ["1", "tea"]]),
        ("returns setof text language sql as 'values (''a''), (''b'')'", [["sales"], ["a"], ["b"]]),
        ("returns int language sql as 'select 5'", [["sales"], ["5"]]),
        ("returns table (n public.positive) language sql as 'select 5::public.positive'", [["n"], ["5"]]),
        ('returns table ("a b" int, "Ключ" int) language sql as \'select 1, 2\'', [["a b", "Ключ"], ["1", "2"]]),
    ],
    ids=["table", "texts", "number", "domain", "quoted names"],
)
def test_functions_of_every_shape_are_read(
    reports_desk: Desk, storage: LocalStorage, definition: str, expected: list[list[str]]
) -> None:
    reports_desk.query("create table public.goods (id int, gone int, label text)")
    reports_desk.query("alter table public.goods drop column gone; insert into public.goods values (1, 'tea')")
    reports_desk.query("create domain public.positive as int check (value > 0)")
    reports_desk.query(f"create function public.sales(params jsonb) {definition}")
    assert reports_desk.make(storage, "csv") is None
    assert rows_of(storage) == expected


def test_several_formats_are_published_side_by_side(reports_desk: Desk, storage: LocalStorage, folder: Path) -> None:
    reports_desk.function("n int", "select 1")
    assert reports_desk.make(storage, "csv", "html", "csv", "pdf") is None
    assert published(folder) == ["out/sales.csv", "out/sales.html", "out/sales.pdf"]


def test_without_a_key_the_path_comes_from_the_job(reports_desk: Desk, storage: LocalStorage, folder: Path) -> None:
    reports_desk.function("n int", "select 1")
    processor = make_processor(ReportsConfig({"sales": "public.sales"}), storage)
    ids = [reports_desk.send({"report": "sales"}) for _ in range(2)]
    for msg_id in [*ids, ids[0]]:
        assert reports_desk.run(processor, msg_id) is None
    assert len(published(folder)) == 2
    assert all(name.startswith("sales/") and name.endswith(".csv") for name in published(folder))


def test_a_rerun_replaces_the_file_and_mails_under_the_same_key(
    reports_desk: Desk, storage: LocalStorage, folder: Path
) -> None:
    reports_desk.function("n bigint", "select count(*) from pgmq.q_email")
    processor = make_processor(ReportsConfig({"sales": "public.sales"}), storage)
    msg_id = reports_desk.send({"report": "sales", "key": "out/sales", "email": {"to": "ann@example.com"}})
    for run in range(2):
        assert reports_desk.run(processor, msg_id) is None
        assert rows_of(storage) == [["n"], [str(run)]]
    assert published(folder) == ["out/sales.csv"]
    other = reports_desk.send({"report": "sales", "key": "out/sales", "email": {"to": "ann@example.com"}})
    assert reports_desk.run(processor, other) is None
    first, second, third = reports_desk.mails()
    assert first == second
    assert first["key"] != third["key"]


def test_the_mail_carries_the_published_files_and_fits_the_mail_processor(
    reports_desk: Desk, storage: LocalStorage
) -> None:
    reports_desk.function("n int", "select 1")
    email = {"to": "Анна <ann@example.com>", "cc": ["bob@example.com"], "subject": "Отчёт", "body": "см. вложение"}
    assert reports_desk.make(storage, "csv", "pdf", title="Продажи / 销售 매출", email=email) is None
    (mail,) = reports_desk.mails()
    payload = EmailPayload.model_validate(mail)
    assert payload.to == ["Анна <ann@example.com>"]
    assert payload.cc == ["bob@example.com"]
    assert (payload.subject, payload.text) == ("Отчёт", "см. вложение")
    assert [(one.key, one.shown_name) for one in payload.attachments] == [
        ("out/sales.csv", "Продажи - 销售 매출.csv"),
        ("out/sales.pdf", "Продажи - 销售 매출.pdf"),
    ]
    for one in payload.attachments:
        assert storage.size(one.key) > 0


def test_the_mail_has_the_title_where_nothing_else_is_given(reports_desk: Desk, storage: LocalStorage) -> None:
    reports_desk.function("n int", "select 1")
    reports_desk.make(storage, "csv", title="Sales", email={"to": ["ann@example.com"]})
    (mail,) = reports_desk.mails()
    assert (mail["subject"], mail["text"]) == ("Sales", "Sales")
    assert "cc" not in mail
