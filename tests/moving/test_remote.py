"""A running server as target and as source: what breaks on the way is repeated once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from itemstore.core.operation import Conflict, Import
from itemstore.errors import MovingError
from itemstore.moving import remote
from itemstore.moving.record import Rejected, Row
from itemstore.moving.remote import Remote, ServerItems, entry

ROWS = [Row(n + 1, f"i{n}", Import(f"i{n}", {"n": n}, n + 1, None)) for n in range(10)]


class Peer:
    """A server that speaks the wire of docs/api.md, and fails as told: once a failure."""

    def __init__(self) -> None:
        self.failures: list[Callable[[web.Request], Any]] = []
        self.items: dict[str, Any] = {}
        self.requests: list[web.Request] = []
        self.cuts: list[int] = []  #: after how many results or items the connection breaks

    async def begin(self, request: web.Request) -> tuple[web.StreamResponse, int | None]:
        """What is answered, and after how many lines it is cut."""
        cut = self.cuts.pop(0) if self.cuts else None
        answer = web.StreamResponse(headers={"Content-Type": remote.NDJSON})
        await answer.prepare(request)
        return answer, cut

    async def take(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.failures:
            return self.failures.pop(0)(request)  # type: ignore[no-any-return]
        answer, cut = await self.begin(request)
        lines = (await request.read()).splitlines()
        for number, line in enumerate(lines):
            if number == cut:
                assert request.transport is not None
                request.transport.abort()
                return answer
            item = orjson.loads(line)
            await answer.write(orjson.dumps(self.put(number, item)) + b"\n")
        await answer.write(orjson.dumps({"lines": len(lines), "done": True}) + b"\n")
        return answer

    def put(self, number: int, item: dict[str, Any]) -> dict[str, Any]:
        if item["data"] == {"n": 7}:
            problem = {"detail": "Seven is refused."}
            return {"line": number, "status": "failed", "problem": problem}
        status = "unchanged" if self.items.get(item["id"]) == item else "created"
        self.items[item["id"]] = item
        return {"line": number, "id": item["id"], "status": status, "version": 1}

    async def give(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.failures:
            return self.failures.pop(0)(request)  # type: ignore[no-any-return]
        answer, cut = await self.begin(request)
        left = [each for each in sorted(self.items) if each > request.query.get("after", "")]
        for number, item_id in enumerate(left):
            if number == cut:
                await answer.write(b'{"id":"half')
                assert request.transport is not None
                request.transport.close()
                return answer
            await answer.write(orjson.dumps(self.items[item_id]) + b"\n")
        return answer


@pytest.fixture
async def peer(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Peer, str]]:
    monkeypatch.setattr(remote, "PAUSE_S", 0.001)
    made = Peer()
    app = web.Application()
    app.router.add_post("/import", made.take)
    app.router.add_get("/export", made.give)
    async with TestServer(app) as server:
        yield made, str(server.make_url(""))


async def put(url: str, conflict: Conflict = Conflict.NEWER) -> list[str | Rejected]:
    async with aiohttp.ClientSession() as session:
        return await Remote(session, url, conflict, "secret").put(ROWS)


SEVEN = Rejected(8, "Seven is refused.")


async def test_rows_are_sent_as_lines_with_their_times_and_the_token(
    peer: tuple[Peer, str],
) -> None:
    server, url = peer
    results = await put(url, Conflict.SKIP)
    assert ["created"] * 7 + [SEVEN] + ["created"] * 2 == results
    assert {"id": "i0", "created_at": "1970-01-01T00:00:00.000001Z", "data": {"n": 0}} == (
        server.items["i0"]
    )
    [request] = server.requests
    assert "Bearer secret" == request.headers["Authorization"]
    assert "skip" == request.query["conflict"]


async def test_after_a_break_it_goes_on_with_the_first_unconfirmed_row(
    peer: tuple[Peer, str],
) -> None:
    server, url = peer
    server.cuts = [0, 3, 2]
    results = await put(url)
    assert ["created"] * 7 + [SEVEN] + ["created"] * 2 == results
    assert 4 == len(server.requests)


@pytest.mark.parametrize("status", [503, 500])
async def test_a_server_that_cannot_now_is_asked_again(peer: tuple[Peer, str], status: int) -> None:
    server, url = peer
    server.failures = [lambda _: web.json_response({"detail": "Later."}, status=status)] * 3
    assert 10 == len(await put(url))


async def test_a_server_that_never_can_ends_the_import_with_its_reason(
    peer: tuple[Peer, str],
) -> None:
    server, url = peer
    server.failures = [lambda _: web.json_response({"detail": "Later."}, status=503)] * 99
    with pytest.raises(MovingError, match=r"Later\."):
        await put(url)
    assert remote.ATTEMPTS == len(server.requests)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda _: web.json_response({"detail": "No token."}, status=401), "No token"),
        (lambda _: web.Response(status=404, text="?"), "404"),
        (lambda _: web.Response(text="<html>\n"), "no itemstore"),
        (lambda _: web.Response(text='{"status": "eaten"}\n'), "no itemstore"),
        (lambda _: web.Response(text="[]\n"), "no itemstore"),
    ],
)
async def test_what_is_no_itemstore_is_told_at_once(
    peer: tuple[Peer, str], answer: Callable[[web.Request], web.Response], says: str
) -> None:
    server, url = peer
    server.failures = [answer]
    with pytest.raises(MovingError, match=says):
        await put(url)


async def read(url: str, after: str | None = None) -> list[bytes]:
    return await asyncio.to_thread(lambda: list(ServerItems(url, "").lines(after)))


async def test_items_are_read_once_each_though_the_connection_breaks(
    peer: tuple[Peer, str],
) -> None:
    server, url = peer
    server.items = {f"i{n}": {"id": f"i{n}", "data": {"n": n}} for n in range(9)}
    server.cuts = [0, 4, 1]
    assert list(server.items.values()) == [orjson.loads(line) for line in await read(url)]
    assert [f"i{n}" for n in range(5, 9)] == [
        orjson.loads(line)["id"] for line in await read(url, "i4")
    ]


async def test_a_source_that_is_no_itemstore_is_told(peer: tuple[Peer, str]) -> None:
    server, url = peer
    for text, status, says in (("<html>", 200, "no itemstore"), ("{}", 404, "404")):
        server.failures = [lambda _, t=text, s=status: web.Response(text=t, status=s)]  # type: ignore[misc]
        with pytest.raises(MovingError, match=says):
            await read(url)
    with pytest.raises(MovingError, match="http://"):
        ServerItems("ftp://x", "")


def test_an_exported_line_keeps_its_data_byte_for_byte() -> None:
    line = (
        rb'{"id":"a\",\"data\":","version":7,"created_at":"2024-05-01T12:00:00.000001Z",'
        rb'"updated_at":"1970-01-01T00:00:00.000007Z","data":{ "b" : ",\"data\":" }}'
    )
    item_id, packed = entry(line)
    assert ('a","data":', rb'{ "b" : ",\"data\":" }') == (item_id, packed[16:])
