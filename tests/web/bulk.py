"""A client of POST /import and GET /export, for the tests of both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson

from tests.web.conftest import ANSWER_LIMIT_S, Answer, Api, head

NDJSON: Final = "application/x-ndjson"


def ndjson(*lines: Any) -> bytes:
    """A line for each value; bytes go as they are."""
    return b"".join((x if isinstance(x, bytes) else orjson.dumps(x)) + b"\n" for x in lines)


def parsed(body: bytes) -> list[Any]:
    return [orjson.loads(line) for line in body.splitlines()]


async def send(api: Api, body: bytes, query: str = "", **headers: Any) -> Answer:
    return await api("POST", f"/import{query}", body=body, content_type=NDJSON, **headers)


async def bring(api: Api, *lines: Any, query: str = "", **headers: Any) -> list[Any]:
    """The results of the lines; the last line must agree with them."""
    answer = await send(api, ndjson(*lines), query, **headers)
    assert (answer.status, answer.headers["Content-Type"]) == (200, NDJSON), answer.body
    *results, last = parsed(answer.body)
    check_last(results, last, done=True)
    return results


def check_last(results: list[Any], last: Any, *, done: bool) -> None:
    """The last line counts what the lines before it say."""
    assert last["done"] is done
    assert ("problem" in last) is not done
    for status in ("created", "replaced", "unchanged", "skipped", "failed"):
        assert last[status] == sum(each["status"] == status for each in results)


async def exported(api: Api, query: str = "") -> list[Any]:
    answer = await api("GET", f"/export{query}")
    assert (answer.status, answer.headers["Content-Type"]) == (200, NDJSON), answer.body
    return parsed(answer.body)


class Talk:
    """A connection on which a body is sent while its answer is read, both in chunks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.headers: dict[str, str] = {}
        self._reader = reader
        self._writer = writer
        self._read = bytearray()

    async def begin(self, method: str, target: str, *lines: str) -> None:
        """Sends the head of a request, and reads that of its answer."""
        self._writer.write(head(method, target, *lines))
        async with asyncio.timeout(ANSWER_LIMIT_S):
            status, *fields = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        assert status == "HTTP/1.1 200 OK"
        self.headers = dict(field.split(": ", 1) for field in fields if field)
        assert self.headers["Transfer-Encoding"] == "chunked"

    def send(self, *lines: Any) -> None:
        body = ndjson(*lines)
        self._writer.write(b"%x\r\n%b\r\n" % (len(body), body))

    def end(self) -> None:
        self._writer.write(b"0\r\n\r\n")

    async def line(self) -> Any:
        """The next line of the answer."""
        while b"\n" not in self._read:
            assert await self._chunk(), "the answer has ended"
        line, _, rest = bytes(self._read).partition(b"\n")
        self._read[:] = rest
        return orjson.loads(line)

    async def rest(self) -> list[Any]:
        """What is left of the answer. Raises OSError, EOFError if it has no end."""
        while await self._chunk():
            pass
        return parsed(bytes(self._read))

    async def _chunk(self) -> bool:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            self._read += (await self._reader.readexactly(size + 2))[:-2]
        return size > 0


@asynccontextmanager
async def talk(port: int) -> AsyncIterator[Talk]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Talk(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def importing(port: int) -> AsyncIterator[Talk]:
    """An import under way."""
    async with talk(port) as one:
        lines = ("Transfer-Encoding: chunked", f"Content-Type: {NDJSON}")
        await one.begin("POST", "/import", *lines)
        yield one
