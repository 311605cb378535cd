"""A real server process is stopped, killed and started again."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import psycopg
import pytest

from tests.acceptance.process import ServerProcess, Start

WRITERS = 32


class Writing:
    """Writers that go on until they are done or refused."""

    def __init__(self, url: str, durability: str, *, enough_at: int) -> None:
        #: What was acknowledged, byte for byte; ``enough`` is set when it is so many.
        self.acknowledged: dict[str, bytes] = {}
        self.enough = asyncio.Event()
        self._enough_at = enough_at
        self._url = url
        self._headers = {"Content-Type": "application/json", "Durability": durability}
        self._numbers = iter(range(10_000))
        self._task = asyncio.create_task(self._write_all())

    async def end(self) -> dict[str, bytes]:
        await self._task
        return self.acknowledged

    async def _write_all(self) -> None:
        async with aiohttp.ClientSession(headers=self._headers) as session:
            await asyncio.gather(*(self._write(session) for _ in range(WRITERS)))

    async def _write(self, session: aiohttp.ClientSession) -> None:
        for number in self._numbers:
            body = b'{"data":{"number":%d,"name":"\xc3\xa4 %d","of":[1,2.5,null]}}' % (
                number,
                number,
            )
            try:
                async with session.put(f"{self._url}/items/item-{number}", data=body) as answer:
                    if answer.status != 201:
                        return
                    self.acknowledged[f"item-{number}"] = await answer.read()
            except aiohttp.ClientError:
                return
            if len(self.acknowledged) >= self._enough_at:
                self.enough.set()


async def read_all(url: str, item_ids: list[str]) -> dict[str, bytes]:
    found = {}
    pending = iter(item_ids)

    async def read(session: aiohttp.ClientSession) -> None:
        for item_id in pending:
            async with session.get(f"{url}/items/{item_id}") as answer:
                found[item_id] = await answer.read()

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(read(session) for _ in range(WRITERS)))
    return found


@pytest.mark.parametrize("skip", ["false", "true"])
async def test_sigterm_amid_writes_loses_nothing(start: Start, dsn: str, skip: str) -> None:
    """Stopped in the middle of 10,000 memory writes, every acknowledged one is there afterwards."""
    server = start(LOG_LEVEL="warning")
    writing = Writing(server.url, "memory", enough_at=3_000)
    await writing.enough.wait()
    server.signal(signal.SIGTERM)
    acknowledged = await writing.end()
    assert 0 == await asyncio.to_thread(server.wait)
    assert 3_000 <= len(acknowledged) < 10_000

    again = start(SKIP_ITEMS_PRELOAD=skip, LOG_LEVEL="warning")

    assert acknowledged == await read_all(again.url, list(acknowledged))
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT count(*) FROM items").fetchone()
    assert row is not None
    assert len(acknowledged) <= row[0]  # an answer may be lost on its way, a write may not


async def test_kill_loses_no_commit(start: Start) -> None:
    """Killed without warning, every write acknowledged at commit is there afterwards."""
    server = start(LOG_LEVEL="warning")
    writing = Writing(server.url, "commit", enough_at=1_000)
    await writing.enough.wait()
    server.signal(signal.SIGKILL)
    acknowledged = await writing.end()
    server.wait()

    again = start(LOG_LEVEL="warning")

    assert acknowledged == await read_all(again.url, list(acknowledged))


async def test_two_stores_in_turn_continue_the_clock(start: Start) -> None:
    """Versions go on growing over a restart, and a deleted item stays deleted."""
    headers = {"Content-Type": "application/json"}
    first = start()
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.put(f"{first.url}/items/a", data=b'{"data":{}}') as answer:
            before = (await answer.json())["version"]
        await session.put(f"{first.url}/items/b", data=b'{"data":{}}')
        await session.delete(f"{first.url}/items/b", headers={"Durability": "memory"})
    first.signal(signal.SIGTERM)
    assert 0 == first.wait()

    second = start()

    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.put(f"{second.url}/items/a", data=b'{"data":{}}') as answer:
            assert before < (await answer.json())["version"]
        async with session.get(f"{second.url}/items/b") as answer:
            assert 404 == answer.status


def test_sigterm_is_logged_in_order(start: Start) -> None:
    """A stop says when it begins and, at the end, that nothing was lost."""
    server = start()
    server.signal(signal.SIGTERM)

    assert 0 == server.wait()
    events = server.events()
    assert ["stopping", "stopped"] == [each["message"] for each in events][-2:]
    assert 0 == events[-1]["lost"]


def test_wrong_setting_stops_the_start(tmp_path: Path) -> None:
    """A value that is not allowed is named, with what is allowed, and the exit code is 2."""
    server = ServerProcess(tmp_path / "log", DURABILITY="maybe", QUEUE_MAX_BYTES="much")
    server.start(wait=False)

    assert 2 == server.wait()
    assert (
        "DURABILITY='maybe' is not allowed: give auto, memory, journal or commit."
        in server.output()
    )
    assert "QUEUE_MAX_BYTES='much' is not allowed" in server.output()


def test_wrong_database_stops_the_start(tmp_path: Path, dsn: str) -> None:
    """A database that does not exist stops the start at once, with the reason and exit code 1."""
    server = ServerProcess(
        tmp_path / "log", DATABASE_URL=psycopg.conninfo.make_conninfo(dsn, dbname="no_such")
    )
    server.start(wait=False)

    assert 1 == server.wait()
    assert 'database "no_such" does not exist' in server.output()


def test_port_in_use_stops_the_start(start: Start, tmp_path: Path, dsn: str) -> None:
    """A port that is taken is named, and what to set."""
    first = start()
    second = ServerProcess(tmp_path / "log", DATABASE_URL=dsn, PORT=str(first.port))
    second.start(wait=False)

    assert 1 == second.wait()
    assert "Cannot listen on 127.0.0.1, port" in second.output()
    assert "Set PORT or HOST" in second.output()
