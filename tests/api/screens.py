"""Makes the pictures of the dashboard in docs/screens: `python -m tests.api.screens`. Run by hand; looks best quiet."""

from __future__ import annotations

import io
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import psycopg
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from queue_worker import embedded, migrate
from queue_worker.config import load_settings
from tests.api.served import served
from tests.sql.engine import Engine

FOLDER = Path(__file__).parents[2] / "docs" / "screens"
SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
TRACEBACK = """stripe.RateLimitError: Request rate limit exceeded
  File "jobs.py", line 41, in charge
    intent = client.payment_intents.create(amount=amount, currency=currency)
  File "stripe/_http_client.py", line 213, in request
    raise self.handle_error_response(content, status)"""


def fill(db: psycopg.Connection[Any]) -> None:
    """Put believable data of an hour into a database."""
    for queue in ("email", "payments", "reports", "thumbnails"):
        engine = Engine(db, queue).create()
        engine.rows(
            "select queue_worker.send(%s, jsonb_build_object('to', 'ann' || g || '@example.com', 'template', 'welcome',"
            " 'context', jsonb_build_object('name', 'Ann', 'reset_token', 'a-secret')), priority => g %% 3,"
            " delay_seconds => case when g %% 5 = 0 then 3600 else 0 end) from generate_series(1, %s) g",
            queue,
            {"email": 40, "payments": 12, "reports": 4, "thumbnails": 260}[queue],
        )
        receipts = engine.take(6)
        engine.settle(receipts[:3])
        if queue in ("payments", "email"):
            for text in ("timeout: no answer within 30 s", "connection reset by peer"):
                receipt = engine.take_one()
                engine.settle([], [(receipt, "failed", 600, "", text)])
            receipt = engine.take_one()
            engine.settle([], [(receipt, "failed", 0, "", "HTTP 502 from the provider")])
            receipt = (receipt[0], receipt[1] + 2, receipt[2])
            engine.rows("update pgmq.q_QUEUE set vt = 'epoch' where msg_id = %s", receipt[0])
            engine.take(1)
            engine.settle([], [(receipt, "dead", 0, "attempts", TRACEBACK)])
        for minute in range(60):
            wave = 60 + 40 * math.sin(minute / 7) + 13 * math.sin(minute * 2.3)
            weight = {"email": 1.0, "payments": 0.4, "reports": 0.05, "thumbnails": 3.0}[queue]
            failed = max(0, 18 - abs(minute - 31) * 3) if queue == "payments" else 1 if minute % 17 == 0 else 0
            db.execute(
                "insert into queue_worker_data.minutes (queue, minute, done, retried) values (%s,"
                " date_trunc('minute', now()) - make_interval(mins => %s), %s, %s) on conflict do nothing",
                [queue, 59 - minute, round(wave * weight), failed],
            )
        db.execute(
            "insert into queue_worker_data.totals (queue, done) values (%s, 48211) on conflict (queue) do update"
            " set done = 48211",
            [queue],
        )
    db.execute("select queue_worker.pause('reports', 'the warehouse is being moved until 14:00')")
    for name, busy, queues in (("web-1", 7, ["email", "payments"]), ("web-2", 12, ["email", "thumbnails"])):
        db.execute(
            "select queue_worker.heartbeat(%s, %s, 4711, '0.1.0', %s, 15, %s)", [f"{name}:4711", name, queues, busy]
        )
    for name, queue, cron, zone in (
        ("weekly-sales", "reports", "0 7 * * 1", "Europe/Berlin"),
        ("reminders", "email", "0 9 * * 1-5", "America/New_York"),
        ("clean-up", "thumbnails", "*/15 * * * *", "UTC"),
    ):
        db.execute(
            "select queue_worker.schedule(%s, %s, %s, %s, timezone => %s)", [name, queue, cron, json.dumps({}), zone]
        )
    rules = {**load_settings({"database_url": "postgresql://x"}).alert_rules, "every": 10, "lease": 60}
    db.execute("select * from queue_worker.check_alerts(%s)", [json.dumps(rules)])


def shoot(browser: Browser, url: str, pages: dict[str, str]) -> None:
    """Take a picture of every page in every size and scheme; 64 colours are enough and a quarter of the bytes."""
    for size, viewport in SIZES.items():
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport=viewport, color_scheme=scheme, device_scale_factor=1)
            page = context.new_page()
            for name, path in pages.items():
                page.goto(url + path, wait_until="load")
                raw = page.screenshot(full_page=size == "phone" and name != "queue")
                picture = Image.open(io.BytesIO(raw)).convert("RGB").quantize(64)
                picture.save(FOLDER / f"{name}-{size}-{scheme}.png", optimize=True)
            context.close()


def main() -> None:
    """Make all pictures anew."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        embedded.ensure(Path(folder) / "pg") as server,
        psycopg.connect(server.url, autocommit=True) as db,
    ):
        migrate.up(server.url)
        fill(db)
        dead = db.execute("select dead_id from queue_worker.dead_letters where queue = 'payments'").fetchone()
        assert dead is not None
        pages = {
            "overview": "/",
            "queue": "/queues/email",
            "message": "/queues/email/messages/20",
            "dead": f"/queues/payments/dead/{dead[0]}",
            "schedules": "/schedules",
            "workers": "/workers",
            "alerts": "/alerts",
        }
        with served(server.url) as client, sync_playwright() as play:
            browser = play.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
            shoot(browser, client.url, pages)
            browser.close()


if __name__ == "__main__":
    main()
