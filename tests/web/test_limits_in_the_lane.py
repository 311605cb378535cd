"""Limited requests are answered by the lane as by the ordinary route, byte for byte."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from itemstore.core.rate import Rate
from itemstore.web import traffic
from itemstore.web.limits import Limits
from itemstore.web.traffic import Kind
from tests.web.test_lane import Side, _count_answers, _request_id, compare, side

HOST = b" HTTP/1.1\r\nHost: a\r\n"


def limits() -> Limits:
    return Limits(
        {Kind.READ: Rate.parse("6/m"), Kind.WRITE: Rate.parse("5/m")},
        trust="railway",
        now_ns=lambda: 10**12,
    )


@pytest_asyncio.fixture
async def sides(server: Callable[[int], str]) -> AsyncIterator[tuple[Side, Side]]:
    """With the lane and without; by their clock, no time passes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traffic, "request_id", _request_id)
        async with (
            side(server(16), fast=True, limited=limits()) as fast,
            side(server(16), fast=False, limited=limits()) as slow,
        ):
            _count_answers(patch, fast)
            yield fast, slow


def put(item_id: bytes, body: bytes, head: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"PUT /items/" + item_id + HOST + length + head + b"\r\n" + body


def get(item_id: bytes, head: bytes = b"", method: bytes = b"GET") -> bytes:
    return method + b" /items/" + item_id + HOST + head + b"\r\n"


async def test_limited_answers_are_the_same(sides: tuple[Side, Side]) -> None:
    """Of each outcome, up to the last request and beyond it, and of what the lane leaves alone."""
    data, wrong = b'{"data":{"a":1}}', b'{"data":1}'
    post = put(b"", data).replace(b"PUT /items/", b"POST /items")
    requests = (
        *(put(b"k", data), put(b"k", data, b'If-Match: "1"\r\n'), put(b"k", wrong)),
        *(post, get(b"k"), get(b"none"), get(b"k", method=b"HEAD"), get(b"k", b"TE: trailers\r\n")),
        *(get(b"k", b"X-Real-IP: 192.0.2.1\r\n"), get(b"k", b"X-Real-IP: nonsense\r\n")),
        *(put(b"k", data), put(b"k", data), post, put(b"k", wrong)),
        *(get(b"k"), get(b"k"), get(b"k", method=b"HEAD"), get(b"none")),
        get(b"k", b"X-Real-IP: 192.0.2.1\r\n"),
    )
    fast, slow = sides
    for request in requests:
        answer = await compare(sides, [request])
        assert b"\r\nRateLimit: " in answer, request
    assert {"read": 3, "write": 3} == fast.limits.refused == slow.limits.refused
    assert len(fast.answered) > len(requests) / 2
