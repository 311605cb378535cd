"""Callers of every kind, until they are told to stop: what a dashboard is to show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Final

import aiohttp

PAUSE_S: Final = 0.01

_BATCH: Final = {"operations": [{"op": "get", "id": "item-1"}, {"op": "delete", "id": "none"}]}


@asynccontextmanager
async def under_load(port: int) -> AsyncIterator[None]:
    """Requests of all kinds at the port, some of them wrong, as long as this context."""
    callers = [asyncio.create_task(each(port)) for each in (_good, _confused, _garbled)]
    try:
        yield
    finally:
        for caller in callers:
            caller.cancel()
        ends = await asyncio.gather(*callers, return_exceptions=True)
    failed = [end for end in ends if not isinstance(end, asyncio.CancelledError)]
    assert failed == []


async def _good(port: int) -> None:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        for number in count():
            item = {"data": {"n": number, "text": "x" * (number % 500)}}
            for method, path, body in (
                ("PUT", f"/items/item-{number % 1_000}", item),
                ("GET", f"/items/item-{number % 1_000}", None),
                ("POST", "/items", item),
                ("POST", "/items:batch", _BATCH),
                ("GET", "/items?limit=10", None),
            ):
                async with session.request(method, path, json=body) as response:
                    await response.read()
                    assert response.status < 300, (method, path, response.status)
            await asyncio.sleep(PAUSE_S)


async def _confused(port: int) -> None:
    """What is not there, and what is no item."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        for number in count():
            async with session.get(f"/items/missing-{number}") as response:
                assert response.status == 404
            async with session.put("/items/a", json={"dat": {}}) as response:
                assert response.status == 422
            await asyncio.sleep(PAUSE_S)


async def _garbled(port: int) -> None:
    """What is not HTTP."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"hello\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        await asyncio.sleep(PAUSE_S)
