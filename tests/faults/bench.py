"""The bench a scenario works at: one directory, one PostgreSQL, one server at a time, clients."""

from __future__ import annotations

import asyncio
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson
import psycopg

from tests.acceptance.process import ServerProcess
from tests.faults.connection import Answer, Connection, item_path
from tests.faults.history import Kill, State
from tests.faults.postgres import PostgresServer
from tests.faults.proxy import Proxy

ROOT: Final = Path(__file__).parents[2]
READERS: Final = 16
REST_S: Final = 60.0  # for a queue to become empty


class Stuck(Exception):
    """The store did not recover in time: a finding."""


class Bench:
    """Made by ``bench``. ``source`` is the tree with the itemstore to be tested."""

    def __init__(self, directory: Path, source: Path, seed: str) -> None:
        self.directory = directory
        self.source = source
        self.postgres = PostgresServer(directory / "pg")
        self.proxy = Proxy(lambda: self.postgres.socket, random.Random(f"proxy-{seed}"))
        self.rss_max = 0  #: bytes, of the server, as far as it was looked at
        self.since = 0  #: versions of the round at hand are newer
        self.environment: dict[str, str] = {}  #: settings of every server, before its own
        self._servers: list[ServerProcess] = []
        self._clients: list[Clients] = []

    def begin_round(self) -> None:
        self.since = time.time_ns() // 1_000

    # --- the server

    @property
    def server(self) -> ServerProcess:
        """The one that was started last."""
        return self._servers[-1]

    @property
    def url(self) -> str:
        return self.server.url

    async def start(self, *, through_proxy: bool = False, **environment: str) -> ServerProcess:
        """A new server with these settings, over PostgreSQL or over the proxy to it.

        It becomes ``server``; one that was started before goes on beside it.
        """
        dsn = self.postgres.dsn
        if through_proxy:
            port = await self.proxy.start()
            dsn = psycopg.conninfo.make_conninfo(dsn, host="127.0.0.1", port=port)
        defaults = {"LOG_LEVEL": "warning", "LOG_FORMAT": "json"}
        server = ServerProcess(
            self.directory / f"server{len(self._servers)}.log",
            DATABASE_URL=dsn,
            PYTHONPATH=str(self.source),
            PYTHONSAFEPATH="1",  # not the directory we are in
            **(defaults | self.environment | environment),
        )
        self._servers.append(server)
        await self.restart()
        return server

    async def restart(self, *, wait: bool = True) -> None:
        """The same server again: the same settings, port and log."""
        await asyncio.to_thread(self.server.start, wait=wait)

    async def kill(self) -> Kill:
        sent = time.monotonic()
        self.server.signal(signal.SIGKILL)
        await asyncio.to_thread(self.server.wait)
        return Kill(sent, time.monotonic())

    async def forget(self) -> None:
        """Earlier rounds, while no server runs."""
        await self.postgres.forget(self.since)

    async def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.server.signal(signal.SIGTERM)
        return await asyncio.to_thread(self.server.wait, 60.0)

    def rss(self) -> int:
        """Bytes of memory of the server now."""
        assert self.server.process is not None
        try:
            pages = Path(f"/proc/{self.server.process.pid}/statm").read_text().split()[1]
        except OSError:  # it has just died
            return 0
        now = int(pages) * resource.getpagesize()
        self.rss_max = max(self.rss_max, now)
        return now

    # --- asking it

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, timeout_s: float = 15.0, **headers: str
    ) -> Answer:
        """Raises NotSent or Lost."""
        connection = Connection(self.url, timeout_s=timeout_s)
        try:
            return await connection.request(method, path, body, **headers)
        finally:
            connection.close()

    async def stats(self) -> dict[str, float]:
        found: dict[str, float] = orjson.loads((await self.ask("GET", "/stats")).body)
        return found

    async def rested(self) -> dict[str, float]:
        """Its numbers, once nothing is dirty any more."""
        limit = time.monotonic() + REST_S
        while True:
            stats = await self.stats()
            if stats["itemstore_dirty_items"] == 0:
                return stats
            if time.monotonic() > limit:
                raise Stuck(f"still dirty after {REST_S:g} s: {stats}")
            await asyncio.sleep(0.02)

    async def left(self) -> State:
        """What PostgreSQL has of this round."""
        return await self.postgres.state(self.since)

    async def state(self, ids: Iterable[str]) -> State:
        """What is left, from PostgreSQL and from the server, which must rest."""
        state = await self.left()
        state.answers = {}
        pending = iter({*ids, *state.newest})
        answers = state.answers

        async def read() -> None:
            connection = Connection(self.url)
            for item_id in pending:
                answer = await connection.request("GET", item_path(item_id))
                assert answer.status in (200, 404), f"reading {item_id}: {answer}"
                answers[item_id] = answer.body if answer.status == 200 else None
            connection.close()

        await asyncio.gather(*(read() for _ in range(READERS)))
        listed = await self.ask("GET", "/items?limit=1&count=exact")
        state.listed = orjson.loads(listed.body).get("count", -1)
        return state

    async def until_back(self, limit_s: float = 30.0) -> float:
        """Seconds until the server has noticed that PostgreSQL is there again."""
        started = time.monotonic()
        while (await self.stats())["itemstore_database_failing_seconds"] > 0:
            if time.monotonic() > started + limit_s:
                raise Stuck(f"PostgreSQL is back, and not noticed within {limit_s:g} s")
            await asyncio.sleep(0.02)
        return time.monotonic() - started

    # --- the clients

    async def clients(
        self, tag: str, name: str = "", urls: Sequence[str] = (), **options: Any
    ) -> Clients:
        """Clients that have begun, of the last server or of several.

        ``options`` are those of clients.py; of several clients with the same ``tag``, only one may
        write.
        """
        directory = self.directory / tag / name
        directory.mkdir(exist_ok=True)
        clients = Clients(directory)
        await clients.begin(urls or [self.url], tag, options)
        self._clients.append(clients)
        return clients

    async def abandon(self) -> None:
        """Ends clients and server, whatever they are at; PostgreSQL runs."""
        for clients in self._clients:
            clients.kill()
        self._clients.clear()
        for server in self._servers:
            server.end()
        await self.proxy.stop()
        await self.postgres.start()

    async def close(self) -> None:
        await self.abandon()
        await self.postgres.stop()


class Clients:
    """The process of clients.py for one round."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._process: asyncio.subprocess.Process | None = None

    async def begin(self, urls: Sequence[str], tag: str, options: dict[str, Any]) -> None:
        arguments = ["--tag", tag, "--history", str(self.directory / "history.jsonl")]
        for name, value in {"url": list(urls), **options}.items():
            for each in value if isinstance(value, list) else [value]:
                arguments += [f"--{name}", str(each)]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.faults.clients",
            *arguments,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert await self._process.stdout.readline() == b"begun\n", "the clients did not begin"

    async def end(self) -> None:
        """Lets each end the operation it is at; then their history is whole."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(self._process.wait(), 60.0)

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()


def _public_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="itemstore-faults-"))
    directory.chmod(0o755)  # PostgreSQL runs as another account
    return directory


@asynccontextmanager
async def bench(source: Path, seed: str) -> AsyncIterator[Bench]:
    """A bench whose PostgreSQL runs; everything is ended and removed at the end."""
    directory = _public_directory()
    made = Bench(directory, source, seed)
    try:
        await made.postgres.start()
        yield made
    finally:
        await made.close()
        shutil.rmtree(directory, ignore_errors=True)
