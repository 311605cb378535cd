"""A real server process is told to stop, or killed, while PostgreSQL is away; nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import psycopg
import pytest

from itemstore import settings
from itemstore.deployment import journal_dir
from itemstore.errors import StartupError
from itemstore.storage.embedded import EmbeddedPostgres
from tests.acceptance.process import START_LIMIT_S, ServerProcess
from tests.conftest import _FAST, _FOUND

Start = Callable[..., ServerProcess]
SHM = Path(f"/dev/shm/itemstore-tests-{os.getpid()}")
BY_ID = "SELECT id, data::text FROM items ORDER BY id"


class Server:
    """A PostgreSQL of this file's own, which it may stop."""

    def __init__(self, directory: Path) -> None:
        self._embedded = EmbeddedPostgres(
            directory, binaries=_FOUND[max(_FOUND)].bin, parameters=_FAST
        )
        self.dsn = self._embedded.start()

    def stop(self) -> None:
        self._embedded.stop()

    def start(self) -> None:
        assert self.dsn == self._embedded.start()

    def rows(self, statement: str = BY_ID) -> list[tuple[object, ...]]:
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(statement.encode()).fetchall()

    def empty(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")


@pytest.fixture(scope="module")
def one(public_dir: Path) -> Iterator[Server]:
    server = Server(public_dir / "drain")
    yield server
    server.stop()


@pytest.fixture
def postgres(one: Server) -> Iterator[Server]:
    """PostgreSQL, running, and running again after the test, with nothing in it."""
    yield one
    one.start()
    one.empty()


@pytest.fixture
def start(tmp_path: Path, postgres: Server) -> Iterator[Start]:
    """Starts servers over that PostgreSQL and ends those a test leaves behind."""
    started: list[ServerProcess] = []

    def start_one(**environment: str) -> ServerProcess:
        log = tmp_path / f"server{len(started)}.log"
        server = ServerProcess(log, DATABASE_URL=postgres.dsn, **environment)
        started.append(server)
        return server.start()

    yield start_one
    for server in started:
        server.end()


async def put(server: ServerProcess, durability: str, *ids: str) -> dict[str, bytes]:
    """What was acknowledged, byte for byte."""
    made = {}
    headers = {"Content-Type": "application/json", "Durability": durability}
    async with aiohttp.ClientSession(headers=headers) as session:
        for item_id in ids:
            url = f"{server.url}/items/{item_id}"
            async with session.put(url, data=b'{"data":{"n":1}}') as answer:
                assert answer.status in {200, 201}, await answer.text()
                assert durability == answer.headers["Durability"]
                made[item_id] = await answer.read()
    return made


async def read(server: ServerProcess, *ids: str) -> dict[str, bytes]:
    found = {}
    async with aiohttp.ClientSession() as session:
        for item_id in ids:
            async with session.get(f"{server.url}/items/{item_id}") as answer:
                found[item_id] = await answer.read()
    return found


def until_logged(server: ServerProcess, event: str) -> None:
    limit = time.monotonic() + START_LIMIT_S
    while event not in [each["message"] for each in server.events()]:
        assert time.monotonic() < limit, server.output()
        time.sleep(0.02)


def stopped(server: ServerProcess) -> tuple[int, list[str]]:
    """The exit code, and the ids that were told to be lost."""
    code = server.wait()
    last = server.events()[-1]
    assert "stopped" == last["message"], server.output()
    assert len(last["ids"]) == last["lost"]
    return code, last["ids"]


IDS = [f"i{number}" for number in range(20)]


async def test_sigterm_during_the_preload_exits_0(start: Start, postgres: Server) -> None:
    """Stopped while it fills its cache, the server writes what it accepted and exits 0."""
    first = start()
    first.signal(signal.SIGTERM)
    assert (0, []) == stopped(first)
    postgres.rows(
        "INSERT INTO items SELECT 'old' || n, '{}', n, now(), now() "
        "FROM generate_series(1, 100000) AS n RETURNING id"
    )
    server = start(SKIP_ITEMS_PRELOAD="false")
    await put(server, "memory", *IDS)
    server.signal(signal.SIGTERM)
    assert (0, []) == stopped(server)
    assert [(100_020,)] == postgres.rows("SELECT count(*) FROM items")


async def test_sigterm_without_postgresql_journals_what_is_left(
    start: Start, postgres: Server, tmp_path: Path
) -> None:
    """With a journal a stop while PostgreSQL is away exits 0, and the next start has everything.

    1. PostgreSQL is stopped; writes at journal and at memory are acknowledged
    2. SIGTERM: what cannot be written is journaled
    3. PostgreSQL is back; the next start
    """
    server = start(DATA_DIR=str(tmp_path), SHUTDOWN_TIMEOUT="1s", SKIP_ITEMS_PRELOAD="false")
    await put(server, "commit", "warm")
    await asyncio.to_thread(until_logged, server, "hydrated")  # a new item needs no query
    postgres.stop()
    acknowledged = await put(server, "journal", *IDS)
    acknowledged |= await put(server, "memory", "memory", "warm")  # 1
    server.signal(signal.SIGTERM)
    assert (0, []) == stopped(server)  # 2
    assert "journaled" in [each["message"] for each in server.events()]
    postgres.start()
    assert [("warm", '{"n":1}')] == postgres.rows()
    again = start(DATA_DIR=str(tmp_path))
    assert acknowledged == await read(again, *acknowledged)  # 3
    assert sorted(acknowledged) == [row[0] for row in postgres.rows()]
    again.signal(signal.SIGTERM)
    assert (0, []) == stopped(again)
    assert {"journal.lock"} == {file.name for file in (tmp_path / "journal").iterdir()}


async def test_sigterm_without_postgresql_and_journal_tells_what_is_lost(
    start: Start, postgres: Server
) -> None:
    """Without a journal such a stop exits 1, and its log names what could not be written."""
    server = start(SHUTDOWN_TIMEOUT="1s", SKIP_ITEMS_PRELOAD="false")
    await put(server, "commit", "warm")
    await asyncio.to_thread(until_logged, server, "hydrated")  # a new item needs no query
    postgres.stop()
    await put(server, "memory", "b", "a")
    server.signal(signal.SIGTERM)
    assert (1, ["a", "b"]) == stopped(server)


async def test_sigterm_again_changes_nothing(start: Start, postgres: Server) -> None:
    """Told to stop again and again, the server goes on emptying its queue, and exits 0."""
    server = start(SHUTDOWN_TIMEOUT="5m", SKIP_ITEMS_PRELOAD="false")
    await put(server, "commit", "warm")
    await asyncio.to_thread(until_logged, server, "hydrated")  # a new item needs no query
    postgres.stop()
    await put(server, "memory", *IDS)
    for _ in range(3):
        server.signal(signal.SIGTERM)
        await asyncio.to_thread(until_logged, server, "stopping")
    postgres.start()
    assert (0, []) == stopped(server)
    assert sorted([*IDS, "warm"]) == [row[0] for row in postgres.rows()]
    assert 1 == [each["message"] for each in server.events()].count("stopping")


async def test_a_second_ctrl_c_hurries(start: Start, postgres: Server) -> None:
    """A second Ctrl-C ends the wait for PostgreSQL: exit 1, and what is lost is told."""
    server = start(SHUTDOWN_TIMEOUT="5m", SKIP_ITEMS_PRELOAD="false")
    await put(server, "commit", "warm")
    await asyncio.to_thread(until_logged, server, "hydrated")  # a new item needs no query
    postgres.stop()
    await put(server, "memory", "a")
    server.signal(signal.SIGINT)
    await asyncio.to_thread(until_logged, server, "stopping")
    assert server.process is not None
    assert server.process.poll() is None
    server.signal(signal.SIGINT)
    assert (1, ["a"]) == stopped(server)


async def test_kill_without_postgresql_loses_no_journaled_write(
    start: Start, postgres: Server, tmp_path: Path
) -> None:
    """Killed while PostgreSQL is stopped, every write acknowledged at journal is there afterwards.

    The level is the default where there is a directory for data.
    """
    server = start(DATA_DIR=str(tmp_path), SKIP_ITEMS_PRELOAD="false")
    await put(server, "commit", "warm")
    await asyncio.to_thread(until_logged, server, "hydrated")  # a new item needs no query
    postgres.stop()
    acknowledged = await put(server, "journal", *IDS, "warm")
    server.signal(signal.SIGKILL)
    server.wait()
    postgres.start()
    again = start(DATA_DIR=str(tmp_path))
    assert acknowledged == await read(again, *acknowledged)
    assert sorted(acknowledged) == [row[0] for row in postgres.rows()]


async def test_sigterm_while_postgresql_is_waited_for_exits_0(
    start: Start, postgres: Server, tmp_path: Path
) -> None:
    """Stopped before PostgreSQL has ever answered, the server exits 0: nothing was accepted."""
    postgres.stop()
    server = ServerProcess(tmp_path / "log", DATABASE_URL=postgres.dsn, DATA_DIR=str(tmp_path))
    server.start(wait=False)
    try:
        await asyncio.to_thread(until_logged, server, "database_away")
        server.signal(signal.SIGTERM)
        assert (0, []) == stopped(server)
    finally:
        server.end()


# --- DURABILITY=journal where it cannot be

REFUSED = {
    "no directory": ({}, "no directory for data is configured"),
    "in memory": ({"DATA_DIR": str(SHM)}, "lies in memory (tmpfs"),
    "Railway": (
        {"RAILWAY_ENVIRONMENT_NAME": "production", "DATA_DIR": "/data", "AUTH": "none"},
        "a Railway container's own disk is gone with the next deploy",
    ),
    "beside Railway's volume": (
        {
            "RAILWAY_ENVIRONMENT_NAME": "production",
            "RAILWAY_VOLUME_MOUNT_PATH": "/volume",
            "DATA_DIR": "/data",
        },
        "a Railway container's own disk is gone with the next deploy",
    ),
}


@pytest.mark.parametrize("environment", ["no directory", "in memory", "Railway"])
def test_a_journal_that_cannot_be_stops_the_start(
    environment: str, dsn: str, tmp_path: Path
) -> None:
    """DURABILITY=journal without a disk that lasts exits 1, with the reason and what to do."""
    given, reason = REFUSED[environment]
    server = ServerProcess(tmp_path / "log", DATABASE_URL=dsn, DURABILITY="journal", **given).start(
        wait=False
    )
    assert 1 == server.wait()
    assert reason in server.output()
    assert "Name a directory with DATA_DIR, attach a volume, or choose" in server.output()
    assert not SHM.exists()


@pytest.mark.parametrize("environment", REFUSED)
def test_without_being_asked_for_by_name_there_is_no_journal(environment: str) -> None:
    """At auto the same places have no journal; DURABILITY=journal is refused with the reason."""
    given, reason = REFUSED[environment]
    found = {"DATABASE_URL": "postgresql:///x", **given}
    assert journal_dir(settings.load(found)) is None
    with pytest.raises(StartupError) as refusal:
        journal_dir(settings.load({**found, "DURABILITY": "journal"}))
    assert reason in refusal.value.detail


def test_the_reason_is_a_sentence() -> None:
    """The refusal reads as sentences do."""
    given = {"DATABASE_URL": "postgresql:///x", "DURABILITY": "journal", "DATA_DIR": "/dev/shm/x"}
    with pytest.raises(StartupError) as refusal:
        journal_dir(settings.load(given))
    assert ".." not in refusal.value.detail


def test_a_directory_that_lasts_has_a_journal(tmp_path: Path) -> None:
    """In DATA_DIR, and on Railway's volume, there is a journal."""
    url = {"DATABASE_URL": "postgresql:///x"}
    assert tmp_path / "journal" == journal_dir(settings.load({**url, "DATA_DIR": str(tmp_path)}))
    railway = {"RAILWAY_ENVIRONMENT_NAME": "x", "RAILWAY_VOLUME_MOUNT_PATH": str(tmp_path)}
    assert tmp_path / "journal" == journal_dir(settings.load(url | railway))
    inside = {"DATA_DIR": str(tmp_path / "data"), **railway}
    assert tmp_path / "data" / "journal" == journal_dir(settings.load(url | inside))
