"""A server process that is attacked, and a caller beside the attackers that must not notice.

What an attack may cost is told in memory, and in answers: ``under_attack`` has a neighbour that
writes and reads all the while. Every answer it gets must be right, and it must get on.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from tests.acceptance.process import ServerProcess
from tests.conftest import _FOUND
from tests.sql import make_database
from tests.web.conftest import Answer, Raw

MIB: Final = 1024 * 1024
ROUNDS_MIN: Final = 20  # that the neighbour makes during each attack
LIMIT_S: Final = 60.0  # so that a neighbour who is not served fails the test instead of hanging it
CONNECTIONS_MAX: Final = 300
BODIES_MAX_MIB: Final = 16


class Neighbour:
    """Puts items and gets them back, one request after the other, over one connection."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.rounds = 0
        self._url = url
        self._session = session

    async def run(self) -> None:
        while True:
            await self.call()

    async def call(self) -> None:
        """One round. What is answered is what was written."""
        url, data = f"{self._url}/items/neighbour", {"round": self.rounds, "text": "x" * 500}
        async with self._session.put(url, json={"data": data}) as put:
            assert put.status in {200, 201}, await put.text()
            written = await put.read()
        async with self._session.get(url) as got:
            assert (got.status, await got.read()) == (200, written)
        self.rounds += 1

    async def until(self, rounds: int) -> None:
        while self.rounds < rounds:  # noqa: ASYNC110 - it counts, and nobody tells
            await asyncio.sleep(0.01)


@asynccontextmanager
async def neighbour(url: str) -> AsyncIterator[Neighbour]:
    """One who is served all the while, and then ``ROUNDS_MIN`` times in all."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(LIMIT_S):
        one = Neighbour(url, session)
        await one.call()  # it is in before the others come
        running = asyncio.create_task(one.run())
        try:
            yield one
            done = asyncio.create_task(one.until(ROUNDS_MIN))
            await asyncio.wait([running, done], return_when=asyncio.FIRST_COMPLETED)
            done.cancel()
            if running.done():
                running.result()
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


class Victim:
    """The server process, and bare connections to it."""

    def __init__(self, server: ServerProcess) -> None:
        assert server.process is not None
        self.port, self.url = server.port, server.url
        self._proc = Path(f"/proc/{server.process.pid}")
        self._connections: AsyncExitStack | None = None

    async def raw(self) -> Raw:
        """A new connection; closed with the attack."""
        assert self._connections is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        connection = Raw(reader, writer)
        self._connections.push_async_callback(connection.close)
        return connection

    def deaf(self) -> socket.socket:
        """A new connection of one who reads nothing, and has room for next to nothing."""
        assert self._connections is not None
        connection = socket.socket()
        self._connections.callback(connection.close)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.connect(("127.0.0.1", self.port))
        return connection

    async def ask(self, data: bytes, method: str = "GET") -> Answer:
        """The answer over a connection of its own."""
        return await (await self.raw()).ask(data, method)

    @asynccontextmanager
    async def under_attack(self, mib_max: int) -> AsyncIterator[Neighbour]:
        """A neighbour, while memory (VmHWM of proc(5)) grows by ``mib_max`` MiB at the most."""
        (self._proc / "clear_refs").write_text("5")  # the peak begins anew
        before = self._memory("VmRSS")
        async with AsyncExitStack() as self._connections:
            async with neighbour(self.url) as one:
                yield one
            grown = self._memory("VmHWM") - before
        assert grown <= mib_max * MIB, f"{grown / MIB:.0f} MiB"

    def _memory(self, name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+) kB", (self._proc / "status").read_text(), re.M)
        assert found is not None
        return int(found[1]) * 1024


@pytest.fixture(scope="module")
def victim(
    server: Callable[[int], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Victim]:
    """One server for the attacks of a module, with little room."""
    process = ServerProcess(
        tmp_path_factory.mktemp("victim") / "log",
        DATABASE_URL=make_database(server(max(_FOUND))),
        DURABILITY="memory",
        CONNECTIONS_MAX=str(CONNECTIONS_MAX),
        BODIES_MAX_BYTES=f"{BODIES_MAX_MIB}MiB",
        CORS_ORIGINS="https://friend.example",
    )
    try:
        process.start()
        yield Victim(process)
        events = process.events()
    finally:
        process.end()
    assert [event for event in events if event["level"] not in {"info", "debug"}] == []
