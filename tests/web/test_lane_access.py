"""With keys on, the lane answers whom the ordinary route answers, and with the same bytes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from typing import Final

import psycopg
import pytest
import pytest_asyncio
from aiohttp import web

from itemstore.core.apikey import compose
from itemstore.keyring import Keyring
from itemstore.options import Options
from itemstore.storage.postgres import Postgres
from itemstore.store import ItemStore
from itemstore.web import server, traffic
from itemstore.web.access import Guard
from itemstore.web.app import make_app
from itemstore.web.limits import LIMITS
from itemstore.web.numbers import TRAFFIC
from tests.sql import make_database
from tests.stores import soon, until
from tests.web.callers import API_KEY, KEYS
from tests.web.test_lane import EPOCH_US, Side, _count_answers, _request_id, compare

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Name → role, prefix, how many seconds from now it is over, and its quota of items; the same keys
#: on both sides.
CALLERS: Final = {
    "reader": ("read", "", None, None),
    "writer": ("write", "", None, None),
    "boss": ("admin", "", None, None),
    "tenant": ("write", "k", None, None),
    "lodger": ("write", "k", None, 3),
    "saver": ("write", "m-", None, 2),
    "guest": ("read", "k1", None, None),
    "former": ("write", "", -1, None),
}
TOKENS: Final = {
    name: compose(name.encode().ljust(8), sha256(name.encode()).digest()) for name in CALLERS
}
HEADERS: Final = (
    *(
        f"Authorization: Bearer {token}".encode()
        for name, (_, token) in TOKENS.items()
        if name != "saver"  # who begins with nothing
    ),
    *(f"authorization:bearer  {TOKENS['writer'][1]} ".encode(), b"Authorization: Bearer"),
    *(f"Authorization: Bearer {API_KEY}".encode(), b"Authorization: Basic YTpi", b"X-None: 1"),
    f"Authorization: Bearer {TOKENS['reader'][1][:-1]}~".encode(),
    f"Authorization: Bearer {API_KEY}\r\nAuthorization: Bearer {API_KEY}".encode(),
)
TARGETS: Final = (b"k1", b"k2", b"K1", b"x", b"%6B1", b"k%2F1", b"k1%00", b"none")
ROUNDS: Final = 150


@asynccontextmanager
async def guarded(server_dsn: str, *, fast: bool) -> AsyncIterator[Side]:
    """A side of the comparison that asks for keys."""
    dsn = make_database(server_dsn)
    storage = Postgres(dsn)
    store = ItemStore(storage, Options(), now_us=lambda: EPOCH_US)
    guard = Guard(KEYS, Keyring(storage.keys, store.log))
    async with AsyncExitStack() as stack:
        sock = stack.enter_context(server.listening_socket("127.0.0.1", 0))
        runner = web.AppRunner(make_app(store, guard=guard), access_log=None, shutdown_timeout=5.0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        listener = await server.listen(runner, sock, fast_lane=fast)
        stack.callback(listener.close)
        await soon(store.start())
        await until(lambda: store.cache.hydrated)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("UPDATE id_blocks SET key = 1")
            for name, (role, prefix, over_s, max_items) in CALLERS.items():
                key_id, token = TOKENS[name]
                digest = sha256(token.encode()).digest()
                connection.execute(
                    "INSERT INTO api_keys (id, digest, name, role, prefix, max_items, expires_at)"
                    " VALUES (%s, %s, %s, %s, %s, %s, now() + %s * interval '1 second')",
                    (key_id, digest, name, role, prefix, max_items, over_s),
                )
        store.clock.newest = EPOCH_US
        store.is_pending = lambda item_id: False  # type: ignore[method-assign]
        stack.push_async_callback(store.close, 10.0)
        yield Side(store, sock.getsockname()[1], runner.app[TRAFFIC], runner.app[LIMITS])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sides(server: Callable[[int], str]) -> AsyncIterator[tuple[Side, Side]]:
    """With the lane, and without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traffic, "request_id", _request_id)
        async with guarded(server(16), fast=True) as fast, guarded(server(16), fast=False) as slow:
            _count_answers(patch, fast)
            yield fast, slow


def drawn(chance: random.Random) -> bytes:
    """A request of somebody for something."""
    method = chance.choice([b"GET", b"GET", b"HEAD", b"PUT", b"POST", b"DELETE", b"PATCH"])
    target, body = b"/items/" + chance.choice(TARGETS), b""
    if method == b"POST":
        target = b"/items"
    if method in {b"PUT", b"POST", b"PATCH"}:
        body = b'{"data":{"n":%d}}' % chance.randrange(9)
        if method == b"POST" and chance.random() < 0.5:
            body = b'{"id":"%b","data":{}}' % chance.choice([b"k3", b"x3", b"k1"])
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: x", chance.choice(HEADERS)]
    if chance.random() < 0.2:
        lines.append(chance.choice([b"If-None-Match: *", b'If-None-Match: "1"', b"If-Match: *"]))
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", b""]) + body


async def test_the_lane_lets_in_whom_the_route_lets_in(sides: tuple[Side, Side]) -> None:
    """Requests of all callers, seen and unseen, good and wrong, for their own and others' items."""
    chance = random.Random(20261122)
    for _ in range(ROUNDS):
        await compare(sides, [drawn(chance) for _ in range(chance.choice([1, 2, 3]))])

    answered = sides[0].answered
    assert len(answered) > ROUNDS / 4, "the lane had hardly a part in it"
    assert not [each for each in answered if TOKENS["former"][1].encode() in each]


async def test_the_lane_keeps_quotas(sides: tuple[Side, Side]) -> None:
    """The first write, before which PostgreSQL counts, one that fits, and one that does not."""
    lines = b"HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n" % TOKENS["saver"][1].encode()
    await compare(sides, [b"GET /items/m-1 %b\r\n" % lines])  # from now on the lane knows the key
    before = len(sides[0].answered)

    put = b'PUT /items/%%b %bContent-Length: 11\r\n\r\n{"data":{}}' % lines
    asked = [put % each for each in (b"m-1", b"m-2", b"m-3", b"m-1")]
    answers = [await compare(sides, [each]) for each in asked]

    assert [b"201", b"201", b"403", b"200"] == [each[9:12] for each in answers]
    assert b'"code":"quota_exceeded"' in answers[2]
    assert asked == [each for each in sides[0].answered[before:] if each in asked]


async def test_the_lane_asks_a_stranger_never(sides: tuple[Side, Side]) -> None:
    """What it has not seen yet goes to the ordinary route, and then is seen."""
    fast, _ = sides
    ask = b"GET /items/none HTTP/1.1\r\nHost: x\r\nUser-Agent: new\r\n%b\r\n\r\n"
    before = len(fast.answered)

    for header in HEADERS[-4:]:
        for _ in range(3):
            answer = await fast.send([ask % header])
            assert answer.startswith(b"HTTP/1.1 401")

    assert before == len(fast.answered)
