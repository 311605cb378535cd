"""The embedded PostgreSQL, tried with real servers.

Directories are made under /tmp and opened to everybody: pytest's own tmp_path lies under one that
only its owner may enter, and run as root these tests need servers of other accounts.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from itemstore.errors import StartupError
from itemstore.storage import embedded
from itemstore.storage.embedded import EmbeddedPostgres, default_data_dir, find_installations

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


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory everybody may enter; a server that a failed test left in it is killed."""
    path = Path(tempfile.mkdtemp(prefix="itemstore-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    for noted in path.rglob("postmaster.pid"):
        pid = server_pid(noted.parent.parent)
        if is_server(pid, noted.parent):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def made_once() -> Iterator[Path]:
    """A data directory that was started and stopped, to be copied: initdb takes long."""
    path = Path(tempfile.mkdtemp(prefix="itemstore-test-", dir="/tmp"))
    with EmbeddedPostgres(path / "data", parameters=FAST):
        pass
    yield path / "data"
    shutil.rmtree(path)


@pytest.fixture
def data_dir(room: Path, made_once: Path) -> Path:
    """A data directory as a second start finds it."""
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


def start_store(data_dir: Path, *, until: Callable[[], object] | None = None) -> int:
    """The pid, and process group, of another store; it has started unless told otherwise."""
    with subprocess.Popen(
        ["sh", "-c", 'exec "$0" -c "$1" "$2" & echo $!', sys.executable, STORE, data_dir],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as shell:
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
        if until is None:
            assert "dbname=itemstore" in shell.stdout.readline()
        else:
            wait_until(until)
    return pid
