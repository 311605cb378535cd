"""HTTP/1.1 over one socket that never sends a request twice.

A library may repeat a request over a new connection when the old one breaks; then nobody could
tell how often it happened. Here a request was answered, not sent at all, or lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, urlsplit


class NotSent(Exception):
    """Nobody listens: nothing was sent."""


class Lost(Exception):
    """No answer came: it may have happened or not."""


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]  #: names in lower case
    body: str


def item_path(item_id: str) -> str:
    return f"/items/{quote(item_id, safe='')}"


class Connection:
    """To one server at a time, opened when it is needed; used by one task."""

    def __init__(self, url: str, *, timeout_s: float = 15.0) -> None:
        self._timeout_s = timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.turn_to(url)

    def turn_to(self, url: str) -> None:
        self.close()
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80

    async def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """Raises NotSent or Lost."""
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = self._streams or await self._open()
        except (OSError, TimeoutError) as error:
            raise NotSent(repr(error)) from error
        try:
            async with asyncio.timeout(self._timeout_s):
                writer.write(_request(method, path, headers, body))
                answer = await _answer(reader)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            self.close()
            raise Lost(repr(error)) from error
        if answer.headers.get("connection") == "close":
            self.close()
        return answer

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._streams = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        return self._streams

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


def _request(method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body:
        lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status_line, *lines = head.rstrip().split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(int(status_line.split(" ", 2)[1]), headers, body.decode())
