"""Between the store and PostgreSQL: a wire that delays, freezes, breaks, and eats answers."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

#: What a batch of the persister has in it (storage/statements.py, WRITE).
BATCH: Final = b"INSERT INTO items AS i"
_CHUNK_BYTES: Final = 64 * 1024
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER with 0 s: close() sends RST

Hook = Callable[[], Awaitable[None]]


class Proxy:
    """Listens on a free port of loopback and passes on to a Unix socket."""

    def __init__(self, target: Callable[[], str], chance: random.Random) -> None:
        self._target = target
        self._chance = chance
        self._pairs: set[_Pair] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self.latency_s = 0.0  #: before each chunk, in both directions
        self.jitter_s = 0.0
        self.refusing = False  #: new connections are reset
        self.bytes_left: int | None = None  #: of the client's; then its connection is reset
        self._cut: tuple[bytes, Hook | None] | None = None
        self.cuts = 0  #: answers eaten

    async def start(self) -> int:
        """The port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self.calm()
        self.reset()
        await asyncio.sleep(0)

    def calm(self) -> None:
        """Passes everything on again."""
        self.latency_s = self.jitter_s = 0.0
        self.refusing, self.bytes_left, self._cut = False, None, None
        self._flowing.set()

    def freeze(self) -> None:
        """Nothing passes; the kernel still acknowledges what arrives."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def reset(self) -> None:
        """Every connection breaks at once, on both sides."""
        for pair in list(self._pairs):
            pair.reset()

    def cut_answer(self, marker: bytes = b"", hook: Hook | None = None) -> None:
        """The next batch with ``marker`` in it is committed; its answer is eaten, then RST.

        ``hook`` runs between the two.
        """
        self._cut = marker, hook

    # --- for one pair of connections

    async def hold(self) -> None:
        await self._flowing.wait()
        delay = self.latency_s + self._chance.uniform(0.0, self.jitter_s)
        if delay > 0:
            await asyncio.sleep(delay)
            await self._flowing.wait()

    def spend(self, size: int) -> bool:
        """False if this chunk is the one that breaks the wire."""
        if self.bytes_left is None:
            return True
        self.bytes_left -= size
        if self.bytes_left >= 0:
            return True
        self.bytes_left = None
        return False

    @property
    def is_armed(self) -> bool:
        return self._cut is not None

    def wants(self, recent: bytes) -> bool:
        return self._cut is not None and BATCH in recent and self._cut[0] in recent

    async def cut(self) -> None:
        hook = self._cut[1] if self._cut else None
        self._cut = None
        self.cuts += 1
        if hook is not None:
            await hook()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            _reset(writer)
            return
        try:
            upstream = await asyncio.open_unix_connection(self._target())
        except OSError:
            _reset(writer)
            return
        pair = _Pair(self, (reader, writer), upstream)
        self._pairs.add(pair)
        try:
            await pair.run()
        finally:
            self._pairs.discard(pair)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Pair:
    """A client's connection and the one made for it."""

    def __init__(self, proxy: Proxy, client: Streams, upstream: Streams) -> None:
        self._proxy = proxy
        self._client, self._upstream = client, upstream
        self._recent = b""  # of what the client sent since the last answer
        self._eating = False

    async def run(self) -> None:
        pumps = [asyncio.create_task(self._up()), asyncio.create_task(self._down())]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self.reset()

    def reset(self) -> None:
        _reset(self._client[1])
        self._upstream[1].transport.abort()

    async def _up(self) -> None:
        with suppress(OSError):
            while chunk := await self._client[0].read(_CHUNK_BYTES):
                await self._proxy.hold()
                if not self._proxy.spend(len(chunk)):
                    self._upstream[1].write(chunk[: len(chunk) // 2])
                    return
                if self._proxy.is_armed:
                    self._recent += chunk
                    self._eating = self._eating or self._proxy.wants(self._recent)
                self._upstream[1].write(chunk)
                await self._upstream[1].drain()

    async def _down(self) -> None:
        with suppress(OSError):
            while chunk := await self._upstream[0].read(_CHUNK_BYTES):
                if self._eating:
                    await self._proxy.cut()
                    return
                self._recent = b""
                await self._proxy.hold()
                self._client[1].write(chunk)
                await self._client[1].drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
