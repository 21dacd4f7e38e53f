"""What an app may declare as a schedule, and how it is refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from queue_worker import App
from queue_worker.errors import ConfigError


class Report(BaseModel):
    report: str
    day: int = 1


def test_a_schedule_has_what_it_was_declared_with() -> None:
    app = App()
    app.schedule("0 9 * * *", queue="reports", payload=Report(report="sales"), timezone="Asia/Seoul", priority=5)
    (made,) = app.schedules.values()
    assert made.arguments() == {
        "name": "reports", "queue": "reports", "cron": "0 9 * * *", "payload": {"report": "sales", "day": 1},
        "timezone": "Asia/Seoul", "misfire": "once", "misfire_limit": 100, "options": {"priority": 5},
    }  # fmt: skip


def test_the_decorator_leaves_the_function_as_it_is() -> None:
    app = App()

    def handler(job: Any) -> None:
        del job

    decorated = app.processor("work")(handler)
    assert app.schedule(every="10m", queue="work")(decorated) is decorated
    assert list(app.schedules) == ["work"]


@pytest.mark.parametrize(
    ("every", "text"),
    [(90, "every 90s"), (timedelta(hours=1), "every 3600s"), ("10 minutes", "every 10 minutes"), ("every 5m",) * 2],
)  # fmt: skip
def test_intervals_may_be_seconds_timedelta_or_text(every: Any, text: str) -> None:
    app = App()
    app.schedule(queue="work", every=every)
    assert app.schedules["work"].cron == text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "schedule 'work': give a cron line or every=, one of the two"),
        ({"cron": "@daily", "every": 5}, "one of the two"),
        ({"cron": "61 * * * *"}, "schedule 'work': '61 * * * *': minute '61' is not 0 to 59"),
        ({"cron": "@daily", "timezone": "Mars"}, "time zone 'Mars' is not known"),
        ({"cron": "@daily", "misfire": "never"}, "misfire 'never' is not one of skip, once, all"),
        ({"cron": "@daily", "misfire_limit": 1001}, "misfire_limit 1001 is not 1 to 1000"),
        ({"cron": "@daily", "name": "a b"}, "schedule name 'a b'"),
        ({"cron": "@daily", "queue": "No"}, "'No'"),
        ({"cron": "@daily", "payload": {"a": object()}}, "not JSON serializable"),
        ({"cron": "@daily", "payload": {"a": float("nan")}}, "not JSON compliant"),
        ({"every": 0.5}, "use whole seconds"),
        ({"every": 0}, "an interval is 1 second to 366 days"),
    ],
)
def test_what_cannot_be_right_is_refused_when_the_module_is_loaded(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        App().schedule(**{"queue": "work", **arguments})
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_second_schedule_of_one_name_is_refused() -> None:
    app = App()
    app.schedule("@daily", queue="work")
    with pytest.raises(ConfigError, match="two schedules are called 'work'; give each its own name="):
        app.schedule("@hourly", queue="work")
    app.schedule("@hourly", queue="work", name="work.hourly")
