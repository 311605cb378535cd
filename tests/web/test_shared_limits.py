"""Rate limits in Redis: counted for all instances, and by each of them while Redis is away."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from itemstore.core.caller import ANYBODY
from itemstore.core.rate import Rate, Verdict
from itemstore.web import shared as shared_module
from itemstore.web.limits import Limits
from itemstore.web.shared import Shared
from itemstore.web.traffic import Kind
from tests.stores import Logged, soon, until

REDIS: Final = shutil.which("redis-server")
FOR_EVER_S: Final = 60.0  # no answer is late because the machine is slow
HERE: Final = "192.0.2.1"
SECRET: Final = "correct-horse"

pytestmark = pytest.mark.skipif(REDIS is None, reason="apt-get install redis-server")


class Server:
    """A real Redis that can be killed, and started again with nothing in it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.port = int(sock.getsockname()[1])

    @property
    def url(self) -> str:
        return f"redis://:{SECRET}@127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        """Returns when it answers."""
        assert REDIS is not None
        self._process = await asyncio.create_subprocess_exec(
            *(REDIS, "--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", SECRET),
            *("--save", "", "--appendonly", "no", "--dir", str(self._directory)),
            stdout=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(30), Redis.from_url(self.url) as client:
            while True:
                try:
                    await client.exists("a")
                except Exception:
                    await asyncio.sleep(0.01)
                else:
                    return

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None


@pytest_asyncio.fixture
async def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    monkeypatch.setattr(shared_module, "PING_INTERVAL_S", 0.01)
    server = Server(tmp_path)
    await server.start()
    yield server
    await server.kill()


@asynccontextmanager
async def limits(
    url: str, rate: str, log: Any = None, wait_s: float = FOR_EVER_S
) -> AsyncIterator[Limits]:
    """Those of one instance."""
    shared = Shared(url, log or Logged().log, wait_s=wait_s)
    await shared.start()
    try:
        yield Limits({Kind.READ: Rate.parse(rate)}, shared=shared)
    finally:
        await shared.close()


async def take(some: Limits, network: str = HERE) -> Verdict:
    verdict = await soon(some.take(Kind.READ, ANYBODY, network))
    assert verdict is not None
    return verdict


async def up(some: Limits) -> None:
    await until(lambda: some.are_shared)


async def test_two_instances_count_together(redis: Server) -> None:
    """However many ask both at once, no more pass than of one; and each caller has its own."""
    async with limits(redis.url, "100/d") as first, limits(redis.url, "100/d") as second:
        await asyncio.gather(up(first), up(second))
        verdicts = await asyncio.gather(
            *(take(each) for each in (first, second) for _ in range(90))
        )
        assert 100 == sum(not verdict.retry_after_s for verdict in verdicts)
        assert 80 == first.refused["read"] + second.refused["read"]
        assert 99 == (await take(first, "192.0.2.2")).remaining
        assert 98 == (await take(second, "192.0.2.2")).remaining


async def test_a_bucket_is_kept_no_longer_than_it_fills(redis: Server) -> None:
    """Redis forgets it by itself: its memory holds no more than the callers of that time."""
    async with limits(redis.url, "60/m burst 2") as some, Redis.from_url(redis.url) as client:
        await up(some)
        await take(some)
        await take(some)
        [key] = await client.keys("*")
        assert key.startswith(b"itemstore:")
        assert 0 < await client.pttl(key) <= 2_000


async def test_a_lost_redis_is_counted_without(redis: Server) -> None:
    """Each request is answered by the local limit, the log says so once, and it comes back."""
    logged = Logged()
    async with limits(redis.url, "2/d", logged.log) as some:
        await up(some)
        await take(some)
        await redis.kill()
        verdicts = await asyncio.gather(*(take(some) for _ in range(8)))
        assert 2 == sum(not verdict.retry_after_s for verdict in verdicts)
        assert not some.are_shared
        assert ["redis_found", "redis_lost"] == logged.names()
        await redis.start()
        await up(some)
        assert ["redis_found", "redis_lost", "redis_found"] == logged.names()
        assert 1 == (await take(some)).remaining  # which has forgotten what was
        assert some.shared is not None
        assert 1 == some.shared.losses
    assert SECRET not in str(logged)


async def test_a_redis_that_is_not_there_is_told_of_once(redis: Server) -> None:
    """From the start requests are counted here, until there is one."""
    await redis.kill()
    logged = Logged()
    async with limits(redis.url, "1/d", logged.log) as some:
        assert 0 == (await take(some)).retry_after_s
        assert 0 < (await take(some)).retry_after_s
        await until(lambda: logged.names() == ["redis_lost"])
        await redis.start()
        await up(some)
    assert ["redis_lost", "redis_found"] == logged.names()
    assert SECRET not in str(logged)


async def test_no_request_waits_for_a_silent_redis(redis: Server) -> None:
    """One that has stopped answering is as good as lost: by then the request is counted here."""
    async with limits(redis.url, "1/d", wait_s=0.05) as some, Redis.from_url(redis.url) as client:
        await up(some)
        await client.client_pause(600_000)
        verdicts = await asyncio.gather(*(take(some) for _ in range(50)))  # each of them soon
        assert 1 == sum(not verdict.retry_after_s for verdict in verdicts)
        assert not some.are_shared


async def test_a_clock_of_redis_that_is_set_back_keeps_nobody_out(redis: Server) -> None:
    """An arrival an hour ahead is no state of this limit: the request is counted here."""
    async with limits(redis.url, "10/s") as some, Redis.from_url(redis.url) as client:
        await up(some)
        await take(some)
        [key] = await client.keys("*")
        await client.set(key, str(float(await client.get(key)) + 3_600), ex=3_600)
        verdict = await take(some)
        assert (0, 9) == (verdict.retry_after_s, verdict.remaining)
        assert some.are_shared
