"""What nobody should type, and what somebody will: one clear line, exit code 2, never a traceback."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import psycopg
import pytest

from tests.blackbox.program import COMMAND, Program

LARGEST = 2**63
NOWHERE = {"DATABASE_URL": "postgresql://127.0.0.1:1/nowhere"}


@pytest.mark.parametrize(
    ("payload", "line"),
    [
        ("", "the payload is not JSON: Expecting value at line 1, column 1"),
        ('{"a": 1', "the payload is not JSON: Expecting ',' delimiter at line 1, column 8"),
        ('{\n"a": }', "the payload is not JSON: Expecting value at line 2, column 6"),
        ("{user_id: 1}", "the payload is not JSON: Expecting property name enclosed in double quotes at line 1, "),
        ('{"a": NaN}', "the payload is not JSON: NaN is not a JSON number"),
        ('{"a": 1e999}', "the payload is not JSON: "),
        ('{"a": ' + "9" * 5000 + "}", "the payload is not JSON: "),
        ('{"a": "\\ud800"}', "the payload holds half of a surrogate pair"),
        ("[" * 100_000, "the payload is nested too deeply"),
        ("[]", 'the payload must be a JSON object such as {"id": 1}, not an array; --batch sends an array'),
        ("5", 'the payload must be a JSON object such as {"id": 1}, not a number'),
        ("null", 'the payload must be a JSON object such as {"id": 1}, not null'),
        ("@", "'' cannot be read: "),
        ("@none.json", "'none.json' cannot be read: No such file or directory"),
        ("@.", "'.' cannot be read: Is a directory"),
        ("@" + "x" * 5000, "'" + "x" * 5000 + "' cannot be read: File name too long"),
    ],
)
def test_a_bad_payload(bare: Program, payload: str, line: str) -> None:
    done = bare("send", "post", payload)
    assert done.code == 2
    assert done.line.startswith(line)


def test_a_payload_that_the_database_refuses(program: Program) -> None:
    program.ok("create", "post")
    for payload, line in (({"a": "x" * 300_000}, "the limit is 262144"), ({"a": "\x00"}, "unsupported Unicode")):
        done = program("send", "post", "-", stdin=json.dumps(payload))
        assert done.code == 2
        assert line in done.line


@pytest.mark.parametrize(
    "name",
    ["Bad Name", "", "--", "a--b", "x" * 48, "pöst", "post;drop table x", "../post", "post\n", "1post", "\x1b[31m"],
)
def test_a_bad_queue_name(bare: Program, name: str) -> None:
    done = bare("send", "--", name, "{}")
    assert done.code == 2
    assert done.line.startswith("invalid queue name ")
    assert "\x1b" not in done.err


@pytest.mark.parametrize("word", ["0", "-1", "x", "1.5", str(LARGEST), "1" * 30, "", "١"])
def test_a_bad_id(bare: Program, word: str) -> None:
    done = bare("show", "post", "--", word)
    assert done.code == 2
    assert "ids are whole numbers from 1" in done.line


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--delay", "soon"), "--delay 'soon': write a duration such as 10s, 5m, 1h, 2d, or whole seconds"),
        (("--delay", "1.5s"), "--delay '1.5s': write a duration"),
        (("--delay=-5",), "--delay '-5': write a duration"),
        (("--delay", "999999999d"), "--delay '999999999d': at most 365d"),
        (("--at", "tomorrow"), "--run-at 'tomorrow': write a time such as 2030-01-31T18:00Z"),
        (("--at", "2030-01-31T18:00"), "--run-at '2030-01-31T18:00': add the time zone"),
        (("--at", "2030-01-31T18:00Z", "--delay", "5"), "give --delay or --run-at, not both"),
        (("--max-attempts", "0"), "Invalid value for '--max-attempts'"),
        (("--priority", "101"), "Invalid value for '--priority'"),
        (("--unique-mode", "maybe"), "Invalid value for '--unique-mode'"),
        (("--unique-for", "long"), "--unique-for 'long': write a duration"),
        (("--expires", "never"), "--expires 'never': write a duration"),
        (("--expires", "2030-01-31T18:00"), "--expires '2030-01-31T18:00': add the time zone"),
        (("--header", "trace"), "--header 'trace': write NAME=VALUE"),
        (("--header", "a=1", "--header", "a=2"), "--header 'a' is given twice"),
        (("--nonsense",), "No such option: --nonsense"),
    ],
)
def test_a_bad_option_of_send(bare: Program, options: tuple[str, ...], line: str) -> None:
    done = bare("send", "post", "{}", *options)
    assert done.code == 2
    assert line in done.line


def test_arguments_that_are_not_utf8(program: Program) -> None:
    program.ok("create", "post")
    for arguments in (
        [b"send", b"post", b'{"a": "\xff"}'],
        [b"send", b"\xff", b"{}"],
        [b"pause", b"post", b"--reason", b"\xff"],
    ):
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, env=program.environment(), timeout=60)
        assert done.returncode == 2
        assert done.stderr.count(b"\n") == 1
        assert b"Traceback" not in done.stderr
    done = program("send", "post", "-", stdin=b'{"a": "\xff"}')
    assert (done.code, done.line) == (2, "standard input is not UTF-8 text: see byte 8")


def test_what_others_stored_cannot_steer_the_terminal(program: Program, db: psycopg.Connection[tuple]) -> None:
    program.ok("create", "post")
    evil = "\x1b]0;owned\x07\u202etxt.exe\x9b31m"
    db.execute("select pgmq.send('post', %s::jsonb)", [json.dumps({"text": evil})])
    db.execute("select queue_worker.pause('post', %s)", [evil])
    db.execute(
        "insert into queue_worker_data.dead_letters (queue, msg_id, payload, attempts, reason, error, enqueued_at)"
        " values ('post', 9, %s::jsonb, 1, 'rejected', %s, now())",
        [json.dumps({"text": evil}), evil],
    )
    commands = (("status",), ("show", "post", "1"), ("dead", "list", "post"), ("dead", "show", "post", "1"))
    for arguments in commands:
        for form in ((), ("--json",)):
            out = program.ok(*arguments, *form).out
            assert not [sign for sign in "\x1b\x07\x9b\u202e" if sign in out]
    assert program.ok("dead", "show", "post", "1", "--json").json["payload"] == {"text": evil}


def test_messages_that_are_no_objects_are_shown_all_the_same(program: Program, db: psycopg.Connection[tuple]) -> None:
    program.ok("create", "post")
    for text in ("5", "null", '"text"', "[1, [2]]", "1e400", "9" * 400):
        db.execute("select pgmq.send('post', %s::jsonb)", [text])
    db.execute("select pgmq.send('post', null::jsonb)")
    program.ok("show", "post", "5")
    program.ok("show", "post", "7")
    for msg_id in range(1, 8):
        assert program.ok("show", "post", str(msg_id), "--json").json[0]["msg_id"] == str(msg_id)


APPS = {
    "syntax": ("def f(:\n", "broken.py, line 1: "),
    "missing_import": ("x = 1\nimport no_such_module\n", "broken.py, line 2: No module named 'no_such_module'"),
    "raises": (
        "def f():\n    raise ValueError('bad \\x1b[31m news')\nf()\n",
        "broken.py, line 2: ValueError: bad \\x1b[31m news",
    ),
    "exits": ("import sys\nsys.exit(0)\n", "broken.py, line 2: SystemExit: 0"),
    "no_attribute": ("x = 1\n", "broken.py has no 'app'; make one with app = queue_worker.App()"),
    "other_name": ("from queue_worker import App\njobs = App()\n", "broken.py has no 'app'; did you mean broken:jobs?"),
    "no_app": ("app = 5\n", "'app' in broken.py is a int, not a queue_worker.App; make one with"),
    "bad_queue": (
        "from queue_worker import App\napp = App()\n@app.processor('Bad Name')\ndef f(job): ...\n",
        "broken.py, line 3: invalid queue name 'Bad Name'",
    ),
    "bad_option": (
        "from queue_worker import App\napp = App()\n@app.processor('post', timout=3)\ndef f(job): ...\n",
        "broken.py, line 3: processor 'post': unknown option 'timout'",
    ),
    "two": (
        "from queue_worker import App\napp = App()\n@app.processor('post')\n@app.processor('post')\ndef f(job): ...\n",
        "broken.py, line 3: queue 'post' has two processors",
    ),
    "wrong_value": (
        "from queue_worker import App\napp = App()\n@app.processor('post', timeout=-3)\ndef f(job): ...\n",
        "processor 'post': timeout must be a number above 0",
    ),
    "nothing": ("from queue_worker import App\napp = App(builtins=False)\n", "there is nothing to run"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(APPS))
def test_a_broken_app_is_one_line_that_names_the_file(bare: Program, kind: str) -> None:
    text, line = APPS[kind]
    Path("broken.py").write_text(text)
    done = bare("start", "--app", "broken:app", **NOWHERE)
    assert done.code == 78
    assert done.line.startswith(line)


def test_an_app_that_is_not_there(bare: Program) -> None:
    done = bare("start", "--app", "no_such_app:app", **NOWHERE)
    assert done.code == 78
    assert done.line.startswith("app 'no_such_app': No module named 'no_such_app'; looked in ")
    done = bare("start", "--app", "no_such_app", **NOWHERE)
    assert (done.code, done.line) == (78, "--app must be module:name, for example mypkg.jobs:app")
    done = bare("start", "--queues", "nothing", **NOWHERE)
    assert done.code == 78
    assert done.line.startswith("no processor for queue 'nothing'; processors here: ")


def test_verbose_shows_where_an_app_broke(bare: Program) -> None:
    Path("broken.py").write_text(APPS["raises"][0])
    process = subprocess.run(
        [*COMMAND, "start", "-v", "--app", "broken:app"],
        capture_output=True,
        text=True,
        env=bare.environment(**NOWHERE),
        timeout=60,
    )
    assert process.returncode == 78
    assert "Traceback" in process.stderr
    assert 'broken.py", line 2, in f' in process.stderr
    assert "\x1b" not in process.stderr
