"""Log lines: one record is one line, in both formats, and no secret gets through."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from queue_worker import log
from queue_worker.log import configure, mask_address, redact, register_secret

SECRETS = {
    "postgresql://ann:hunter2@db/x": "postgresql://ann:***@db/x",
    "postgresql://ann:hun@ter/2hunter2@db/x": "postgresql://ann:***@db/x",
    "redis://:hunter2@db": "redis://:***@db",
    "host=db password=hunter2 user=ann": "host=db password=*** user=ann",
    "host=db password='hunter2 hunter2' user=ann": "host=db password=*** user=ann",
    "PGPASSWORD=hunter2": "PGPASSWORD=***",
    "SMTP_PASS=hunter2": "SMTP_PASS=***",
    '{"password": "hunter2 \\" hunter2", "a": 1}': '{"password": ***, "a": 1}',
    "{'api_key': 'hunter2'}": "{'api_key': ***}",
    '{\\"token\\": \\"hunter2\\"}': '{\\"token\\": ***}',
    "client_secret: hunter2": "client_secret: ***",
    "Authorization: Bearer hunter2": "Authorization: ***",
    "{'authorization': 'Basic aHVudGVyMg=='}": "{'authorization': '***'}",
    "bearer hunter2-hunter2": "bearer ***",
    "Cookie: session=hunter2; b=hunter2": "Cookie: ***",
    "AUTH PLAIN AGh1bnRlcjIAaHVudGVyMg==": "AUTH PLAIN ***",
    "key eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoiYSJ9.abc-_1 end": "key *** end",
    "sk_live_hunter2, sk_test_hunter2 rk_live_hunter2": "***, *** ***",
    "sb_secret_hunter2 sbp_hunter2 whsec_hunter2": "*** *** ***",
    "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----": "***",
}
PLAIN = [
    "the mail to ann was refused with 550", "http://127.0.0.1:3001/api/jobs", "postgresql://ann@db/x", "a compass=1",
    "column key does not exist", "task_live_x", "author: ann", "eyJ",
]  # fmt: skip
HOSTILE = "odd\n2026-01-01 00:00:00 INFO     faked\r\x1b[31mred\x1b[0m\u202eevil\u2028next\x85c1\x00nul\ud800"


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    yield stream
    configure("INFO", "human", sys.__stderr__)


Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(out: io.StringIO) -> Lines:
    """The records written so far, where the format is JSON."""
    configure("DEBUG", "json", out)
    return lambda: [json.loads(line) for line in out.getvalue().splitlines()]


# ------------------------------------------------------------------------------------------ secrets


@pytest.mark.parametrize(("text", "expected"), SECRETS.items())
def test_what_looks_like_a_secret_is_hidden(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(f"before {text}").startswith("before ")


@pytest.mark.parametrize("text", PLAIN)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert redact(text) == text


def test_registered_secrets_are_hidden_everywhere_and_short_ones_as_words_only() -> None:
    register_secret("correct horse battery")
    register_secret("zebra")
    register_secret("a.b*c(d")
    register_secret("the")
    assert redact("<correct horse battery> zebra zebras a.b*c(d the") == "<***> *** zebras *** the"


@given(st.text(), st.sampled_from(list(SECRETS)), st.text())
def test_a_secret_is_hidden_in_any_surroundings(before: str, secret: str, after: str) -> None:
    assert "hunter2" not in redact(f"{before}\n {secret} \n{after}".replace("hunter2 \n", "hunter2\n"))


@given(st.text())
def test_redaction_is_stable(text: str) -> None:
    assert redact(redact(text)) == redact(text)


def test_a_secret_appears_in_no_part_of_a_record(lines: Lines, out: io.StringIO) -> None:
    for style in ("json", "human"):
        configure("DEBUG", style, out)
        for text in SECRETS:
            logger.bind(error=text, deep={"list": [text]}, password="hunter2", api_key=["hunter2"]).info("{}", text)
            try:
                raise ValueError(text)
            except ValueError:
                logger.exception("failed")
            logging.getLogger("library").error("told: %s", text)
    assert "hunter2" not in out.getvalue()
    assert "aHVudGVyMg" not in out.getvalue()
    assert len(out.getvalue().splitlines()) > 6 * len(SECRETS)


def test_local_variables_never_appear_in_a_traceback(lines: Lines) -> None:
    smtp_secret = "hunt" + "er2"
    try:
        raise ValueError(len(smtp_secret))
    except ValueError:
        logger.exception("failed")
    assert "hunter2" not in json.dumps(lines())
    assert "ValueError: 7" in lines()[0]["exception"]


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("ann@example.com", "a**@example.com"), ("Ann <ann@example.com>", "a**@example.com"), ("a@b.c", "**@b.c"),
        ("", "**"), ("ann", "**"), ("@b.c", "**"), ("ann@", "**"), ('"a@b"@c.d', '"**@c.d'),
        ("анна@пример.рф", "а**@пример.рф"),
    ],
)  # fmt: skip
def test_addresses_are_masked(address: str, masked: str) -> None:
    assert mask_address(address) == masked


# ------------------------------------------------------------------------------------------ one record, one line


def test_a_json_record_is_one_object_with_its_extras(lines: Lines) -> None:
    logger.bind(queue="email", msg_id=7, attempt=1, seconds=0.1234567, to=None, ok=True).info("done")
    (line,) = lines()
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO", "message": "done", "queue": "email", "msg_id": 7, "attempt": 1, "seconds": 0.123457,
        "to": None, "ok": True,
    }  # fmt: skip


def test_extras_never_replace_the_fields_of_the_record(lines: Lines) -> None:
    logger.bind(level="x", time="y", message="z").info("done")
    (line,) = lines()
    assert (line["level"], line["message"], line["level_"], line["message_"]) == ("INFO", "done", "x", "z")


def test_data_cannot_fake_a_json_record(lines: Lines, out: io.StringIO) -> None:
    logger.bind(error=HOSTILE, **{HOSTILE: HOSTILE}).info("{}", HOSTILE)
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().isprintable() or not [c for c in out.getvalue()[:-1] if unsafe(c)]
    (line,) = lines()
    assert line["message"] == line["error"] == HOSTILE


def test_data_cannot_fake_a_human_record(out: io.StringIO) -> None:
    configure("INFO", "human", out)
    logger.bind(error=HOSTILE, **{HOSTILE: HOSTILE}).info("{}", HOSTILE)
    assert out.getvalue().count("\n") == 1
    assert not [c for c in out.getvalue()[:-1] if unsafe(c)]
    assert r"odd\n2026-01-01 00:00:00 INFO     faked\r\x1b[31mred" in out.getvalue()


def test_the_lines_of_a_human_traceback_are_indented(out: io.StringIO) -> None:
    configure("INFO", "human", out)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("failed")
    first, *rest = out.getvalue().splitlines()
    assert " ERROR    failed" in first
    assert rest
    assert all(line.startswith("    ") for line in rest)
    assert not [c for line in rest for c in line if unsafe(c)]


def unsafe(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in (
        "RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI",
    )  # fmt: skip


ANY = st.text(st.characters())


@given(ANY, ANY, st.one_of(ANY, st.floats(), st.integers(), st.binary(), st.lists(ANY), st.dictionaries(ANY, ANY)))
def test_any_data_gives_one_safe_line_in_both_formats(message: str, name: str, value: Any) -> None:
    for style in ("json", "human"):
        stream = io.StringIO()
        configure("INFO", style, stream)
        logger.bind(**{name: value}).info("{}", message)
        text = stream.getvalue()
        assert text.endswith("\n")
        assert not [c for c in text[:-1] if unsafe(c)]
        text.encode("utf-8")
        if style == "json":
            assert json.loads(text)["level"] == "INFO"
    configure("INFO", "human", sys.__stderr__)


def test_a_human_line_is_short(out: io.StringIO) -> None:
    configure("INFO", "human", out)
    logger.bind(event="message.done", queue="email", msg_id=7, subject='Hello "you"', empty="").info("done")
    assert out.getvalue()[19:] == ' INFO     done queue=email msg_id=7 subject="Hello \\"you\\"" empty=""\n'


class Mute:
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "value", [Mute(), float("nan"), float("inf"), 10**5000, {1: {2: {3: {4: {5: "deep"}}}}}], ids=type
)
def test_odd_extras_break_no_line(value: Any, lines: Lines, out: io.StringIO) -> None:
    logger.bind(odd=value).info("still here")
    assert lines()[0]["message"] == "still here"
    configure("INFO", "human", out)
    logger.bind(odd=value).info("still here")
    assert out.getvalue().count("still here") == 2


def test_a_long_traceback_is_cut_in_the_middle(lines: Lines) -> None:
    try:
        raise ValueError("x" * 100_000 + " the end")
    except ValueError:
        logger.exception("failed")
    text = lines()[0]["exception"]
    assert len(text) < 20_000
    assert "Traceback" in text


# ------------------------------------------------------------------------------------------ configure


def test_levels_below_the_chosen_one_are_not_written(out: io.StringIO) -> None:
    configure("WARNING", "json", out)
    logger.info("no")
    logger.warning("yes")
    logging.getLogger("library").info("no")
    assert [json.loads(line)["message"] for line in out.getvalue().splitlines()] == ["yes"]
    assert (log.enabled("INFO"), log.enabled("WARNING"), log.enabled("ERROR")) == (False, True, True)


def test_configuring_again_replaces_the_stream_and_leaves_other_handlers(out: io.StringIO) -> None:
    mine: list[str] = []
    handler = logger.add(mine.append, format="{message}")
    second = io.StringIO()
    configure("INFO", "human", out)
    configure("INFO", "human", second)
    logger.info("hello")
    logger.remove(handler)
    assert (out.getvalue(), second.getvalue().count("hello"), len(mine)) == ("", 1, 1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "is_json"), [(Terminal(), False), (io.StringIO(), True)])
def test_auto_is_human_on_a_terminal_and_json_elsewhere(stream: io.StringIO, is_json: bool, out: io.StringIO) -> None:
    configure("INFO", "auto", stream)
    logger.info("hello")
    assert stream.getvalue().startswith("{") is is_json


def test_each_record_is_one_write_to_standard_error_of_a_real_process() -> None:
    script = (
        "from loguru import logger; from queue_worker import log; log.configure('INFO', 'json');"
        "logger.info('a\\nb \\u202e'); 1 / 0"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert json.loads(done.stderr.splitlines()[0])["message"] == "a\nb \u202e"
