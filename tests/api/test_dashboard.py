"""The dashboard in a real browser: what a person sees, does, and is protected from."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.api.served import READ_TOKEN, TOKEN, Client, served
from tests.api.test_jobs import bury
from tests.own_server import OwnServer
from tests.sql.engine import Engine

pytestmark = pytest.mark.full

NASTY = ['"><img src=x onerror=window.pwned=1>', "<script>window.pwned=1</script>", "{{7*7}}", "javascript:pwned()"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    path = shutil.which("chromium")
    assert path, "the dashboard is tested in Chromium: apt-get install chromium"
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


class Sheet:
    """A page that remembers what the console said and how many bytes came."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.bytes = 0
        self.page.on("console", lambda message: self.said.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("response", self._count)

    def _count(self, response: Any) -> None:
        self.bytes += int(response.headers.get("content-length", 0))


@pytest.fixture
def sheet(browser: Browser) -> Iterator[Sheet]:
    made = Sheet(browser)
    yield made
    made.context.close()


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    with served(dsn) as client:
        yield client


def test_the_overview_is_small_complete_and_says_what_is_new_by_itself(
    client: Client, engine: Engine, sheet: Sheet
) -> None:
    engine.fill(3)
    answer = sheet.page.goto(client.url)
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    waiting = sheet.page.locator('[data-queue="work"] [data-cell="waiting"]')
    expect(waiting).to_have_text("3")
    expect(sheet.page.locator("#live")).to_have_text("live")
    engine.fill(4)
    expect(waiting).to_have_text("7", timeout=15_000)
    engine.rows("select queue_worker.create_queue('newcomer')")
    expect(sheet.page.locator('[data-queue="newcomer"]')).to_be_visible(timeout=15_000)
    assert sheet.said == []
    assert 0 < sheet.bytes < 150_000


def test_the_first_paint_needs_no_script(client: Client, engine: Engine, browser: Browser) -> None:
    engine.fill(3)
    sheet = Sheet(browser, java_script_enabled=False)
    sheet.page.goto(client.url)
    expect(sheet.page.locator('[data-queue="work"] [data-cell="waiting"]')).to_have_text("3")
    sheet.page.locator("summary").click()
    sheet.page.get_by_role("link", name="Pause").click()
    sheet.page.get_by_label("Reason").fill("lunch")
    sheet.page.get_by_role("button", name="Pause").click()
    expect(sheet.page.locator("h1")).to_contain_text("lunch")
    sheet.context.close()


def test_a_queue_is_paused_resumed_and_purged_only_by_its_name(client: Client, engine: Engine, sheet: Sheet) -> None:
    engine.fill(3)
    page = sheet.page
    page.goto(f"{client.url}/queues/work")
    page.get_by_role("link", name="Pause").click()
    page.get_by_label("Reason").fill("<b>lunch</b>")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status").first).to_be_visible()
    expect(page.locator("h1")).to_contain_text("paused <b>lunch</b>")
    assert engine.value("select pause_reason from queue_worker.queues where queue = 'work'") == "<b>lunch</b>"
    page.get_by_role("link", name="Resume").click()
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("main > .notice").first).to_have_text("The queue runs again.")
    page.get_by_role("link", name="Purge").click()
    page.get_by_label("Type work").fill("wrong")
    page.get_by_role("button", name="Delete messages").click()
    expect(page.get_by_role("alert").filter(has_text="Type the name")).to_be_visible()
    assert engine.count("queue") == 3
    page.get_by_label("Type work").fill("work")
    page.get_by_role("button", name="Delete messages").click()
    expect(page.locator("main > .notice").first).to_have_text("3 deleted.")
    assert engine.count("queue") == 0
    # The refusal above was an answer with status 422, which Chromium notes.
    assert [line for line in sheet.said if "422" not in line] == []


def test_a_dead_letter_is_read_edited_and_sent_again(client: Client, engine: Engine, sheet: Sheet) -> None:
    dead_id = bury(engine, {"n": 1, "password": "geheim"}, "Traceback:\n  line 1\nValueError: boom")
    page = sheet.page
    page.goto(f"{client.url}/queues/work?tab=dead")
    page.get_by_role("link", name="1", exact=True).click()
    assert page.url.endswith(f"/queues/work/dead/{dead_id}")
    expect(page.locator("pre").first).to_contain_text("ValueError: boom")
    assert "geheim" not in page.content()
    page.get_by_role("button", name="Show in full and edit").click()
    box = page.get_by_label("Payload")
    expect(box).to_have_value(json.dumps({"n": 1, "password": "geheim"}, indent=2))
    assert engine.value("select action from queue_worker.audit order by audit_id desc limit 1") == "read_payload"
    box.fill("{")
    page.get_by_role("button", name="Save and send again").click()
    expect(page.get_by_role("alert").filter(has_text="no JSON")).to_be_visible()
    expect(page.get_by_label("Payload")).to_have_value("{")
    page.get_by_label("Payload").fill('{"n": 2}')
    page.get_by_role("button", name="Save and send again").click()
    expect(page.locator("main > .notice").first).to_have_text("1 sent again.")
    assert engine.value("select message from pgmq.q_work") == {"n": 2}


def test_what_messages_hold_is_shown_and_never_run(client: Client, engine: Engine, sheet: Sheet) -> None:
    payload = {f"key {text}": text for text in NASTY} | {"url": "javascript:alert(1)"}
    msg_id = engine.send(payload, {"x": NASTY[0]})
    dead_id = bury(engine, payload, NASTY[1])
    engine.rows("select queue_worker.pause('work', %s)", NASTY[0])
    engine.rows("select queue_worker.schedule('daily', 'work', '0 7 * * *', %s)", json.dumps(payload))
    page = sheet.page
    for path in (
        "/",
        "/queues/work",
        f"/queues/work/messages/{msg_id}",
        "/queues/work?tab=dead",
        f"/queues/work/dead/{dead_id}",
        "/audit",
        "/schedules",
        '/queues/work?tab=waiting&contains={"a":"<script>window.pwned=1</script>"}',
        "/?notice=%3Cscript%3E&n=%3Cb%3E",
    ):
        page.goto(client.url + path)
        page.wait_for_load_state("load")
        assert page.evaluate("window.pwned") is None, path
        assert page.locator("main script, main img").count() == 0, path
        assert "49" not in page.locator("main").inner_text().split(), path
    page.goto(f"{client.url}/queues/work/messages/{msg_id}")
    expect(page.locator("pre.box").first).to_contain_text(NASTY[1])
    assert sheet.said == []


def test_completed_messages_are_listed_and_searched(client: Client, engine: Engine, sheet: Sheet) -> None:
    for number in (1, 2):
        engine.send({"n": number})
    engine.settle(engine.take(2))
    page = sheet.page
    page.goto(f"{client.url}/queues/work?tab=completed")
    expect(page.locator("tbody tr")).to_have_count(2)
    page.get_by_label("Payload or headers contain").fill('{"n": 2}')
    page.get_by_role("button", name="Search").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    page.locator("tbody a").click()
    expect(page.locator("h1")).to_contain_text("completed")
    page.goto(f"{client.url}/queues/work?tab=completed&contains=nonsense")
    expect(page.get_by_role("alert").filter(has_text="JSON object")).to_be_visible()


def test_with_a_token_one_logs_in_and_a_reader_has_no_buttons(dsn: str, engine: Engine, browser: Browser) -> None:
    dead_id = bury(engine, {"n": 1})
    with served(dsn, token="") as client:
        for token, buttons in ((READ_TOKEN, 0), (TOKEN, 3)):
            sheet = Sheet(browser)
            page = sheet.page
            page.goto(client.url)
            assert page.url.endswith("/login")
            page.get_by_label("Token").fill("wrong")
            page.get_by_role("button", name="Log in").click()
            expect(page.get_by_role("alert").filter(has_text="wrong")).to_be_visible()
            page.get_by_label("Token").fill(token)
            page.get_by_role("button", name="Log in").click()
            expect(page.locator('[data-queue="work"]')).to_be_visible()
            [cookie] = sheet.context.cookies()
            assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "Strict")
            page.goto(f"{client.url}/queues/work/dead/{dead_id}")
            assert page.locator("main button").count() == buttons
            page.get_by_role("button", name="Log out").click()
            assert page.url.endswith("/login")
            sheet.context.close()
        kept = client.post("/login", data={"token": READ_TOKEN}, follow_redirects=False).cookies
        jar = "; ".join(f"{name}={value}" for name, value in kept.items())
        path = "/queues/work/act/purge"
        assert client.post(path, headers={"Cookie": jar}, data={"name": "work"}).status_code == 403
        kept = client.post("/login", data={"token": TOKEN}, follow_redirects=False).cookies
        jar = "; ".join(f"{name}={value}" for name, value in kept.items())
        # The session alone is not enough: a form must come from one of its pages.
        for form in ({"name": "work"}, {"name": "work", "csrf": "x"}):
            assert client.post(path, headers={"Cookie": jar}, data=form).status_code == 403
        assert client.post("/api/queues/work/purge", headers={"Cookie": jar}).status_code == 403
    assert engine.count("dead") == 1


def test_on_a_phone_nothing_is_wider_than_the_screen(client: Client, engine: Engine, browser: Browser) -> None:
    engine.send({"text": "x" * 400})
    dead_id = bury(engine, {"text": "y" * 400}, "z" * 400)
    engine.rows("select queue_worker.schedule('daily', 'work', '0 7 * * *', '{}')")
    engine.rows("select queue_worker.heartbeat('w', %s, 1, '1', array['work'], 5, 2)", "h" * 60)
    sheet = Sheet(browser, viewport={"width": 380, "height": 700})
    for path in ("/", "/queues/work", f"/queues/work/dead/{dead_id}", "/schedules", "/workers", "/audit", "/alerts"):
        sheet.page.goto(client.url + path)
        wide = sheet.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 380, path
    assert sheet.said == []
    sheet.context.close()


def test_while_the_database_is_away_the_page_says_so_and_recovers(
    tmp_path_factory: pytest.TempPathFactory, sheet: Sheet
) -> None:
    own = OwnServer(tmp_path_factory.mktemp("own") / "pg")
    try:
        with own.connect() as connection:
            Engine(connection).create()
        with served(own.url) as client:
            page = sheet.page
            page.goto(client.url)
            expect(page.locator("#live")).to_have_text("live", timeout=15_000)
            own.crash(signal.SIGKILL)
            expect(page.locator("#down")).to_contain_text("the database cannot be reached", timeout=20_000)
            other = sheet.context.new_page()
            other.goto(client.url)
            expect(other.locator("h1")).to_have_text("the database cannot be reached")
            own.start()
            with own.connect() as connection:
                Engine(connection).fill(5)
            waiting = '[data-queue="work"] [data-cell="waiting"]'
            expect(page.locator(waiting)).to_have_text("5", timeout=30_000)
            expect(page.locator("#down")).to_be_hidden()
            expect(other.locator(waiting)).to_have_text("5", timeout=30_000)
    finally:
        own.close()
