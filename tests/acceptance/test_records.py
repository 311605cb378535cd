"""A real server process is killed under requests with idempotency keys, and asked again."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import pytest

from tests.acceptance.process import Start
from tests.sql import query

WRITERS = 16
REQUESTS = 400


class Asking:
    """Sends the requests 0, 1, 2 …, each with its own key; notes what is answered."""

    def __init__(self, url: str, durability: str) -> None:
        #: By number: the body of a 201, and whether it was a repetition.
        self.answers: dict[int, tuple[bytes, bool]] = {}
        self.sent = 0
        self.enough = asyncio.Event()
        self._url = url
        self._durability = durability

    async def run(self, numbers: range) -> None:
        waiting = iter(numbers)
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(self._ask(session, waiting) for _ in range(WRITERS)))

    async def _ask(self, session: aiohttp.ClientSession, numbers: object) -> None:
        for number in numbers:  # type: ignore[attr-defined]
            self.sent = max(self.sent, number + 1)
            headers = {"Idempotency-Key": f"key-{number}", "Durability": self._durability}
            item = {"data": {"number": number}}
            try:
                async with session.post(f"{self._url}/items", json=item, headers=headers) as one:
                    body = await one.read()
            except aiohttp.ClientError:
                return
            if one.status != 201:
                return
            self.answers[number] = body, "Idempotent-Replayed" in one.headers
            if len(self.answers) >= REQUESTS // 4:
                self.enough.set()


@pytest.mark.parametrize("durability", ["commit", "journal", "memory"])
async def test_after_a_kill_each_request_is_carried_out_once(
    start: Start, dsn: str, tmp_path: Path, durability: str
) -> None:
    """One item and one row of the audit a key; what was promised is answered as it was.

    At memory a kill may lose a write: then its record is lost with it, and it is made anew.
    """
    server = start(AUDIT="true", DATA_DIR=str(tmp_path / "data"), LEASE_TIME="2s")
    before = Asking(server.url, durability)
    asking = asyncio.create_task(before.run(range(REQUESTS)))
    await before.enough.wait()
    server.signal(signal.SIGKILL)
    await asking
    server.wait()
    server.start()

    after = Asking(server.url, durability)
    await after.run(range(before.sent))
    assert list(range(before.sent)) == sorted(after.answers)
    for number, (body, _) in before.answers.items():
        if durability != "memory" or after.answers[number][1]:
            assert (body, True) == after.answers[number]
    async with aiohttp.ClientSession() as session:
        await session.post(f"{server.url}/flush")
    numbers = query(dsn, "SELECT (data ->> 'number')::int AS n FROM items ORDER BY n")
    assert list(range(before.sent)) == numbers
    rows = query(dsn, "SELECT id, version FROM audit ORDER BY version")
    assert rows == query(dsn, "SELECT id, version FROM items ORDER BY version")
